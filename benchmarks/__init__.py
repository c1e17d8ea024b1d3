"""The measurements: the suite, `python -m benchmarks`, and programs that run alone (benchmarks/README.md)."""

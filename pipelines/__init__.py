"""The jobs: one file, one thing a person submits."""

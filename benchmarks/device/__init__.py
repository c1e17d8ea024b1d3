"""The benchmarks of one device, `python -m benchmarks --device cuda`: ours and the peers in one call, by a time budget.

- clock: how a call is measured (CUDA events, memory, kernels, the device's ceiling)
- ours: samplers, training steps, decoder and tokens of this package
- var: the official code of VAR, from a checkout that the user has
- dit: DiT-XL/2 of diffusers
- parts: what is measured, the most important first
- aims: what the figures must come to, and whether they do
- run: the order, the budget, the files
"""

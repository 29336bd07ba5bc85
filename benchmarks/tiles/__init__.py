"""Which tiles the persistent expert product is fastest with, on one GPU: `python -m benchmarks.tiles --out tiles.toml`.

For products of the example layers, as one of two ranks has them, and rows per expert from a token's to thousands:
every candidate is checked against fp32 with outputs full of NaN, then timed as a CUDA graph that takes turns on sets of
experts larger than L2; candidates take turns too. Rows per expert are random, as a balanced router gives them. What is
fastest goes into `[[tiles]]` of a profile (`epsc/machine/profiles`), every time into FILE.json.

Kernels are compiled by many processes first. Classes that do not fit into `--budget` seconds are left out, and named.
`--tiny` runs all of it on a CPU under Triton's interpreter, to see whether it runs.
"""

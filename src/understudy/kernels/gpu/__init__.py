"""The kernels for a GPU, in Triton. Only they import it: everything else runs where it is not installed."""

import triton

INTERPRETED = bool(triton.knobs.runtime.interpret)  # on the CPU, where a dot takes a bfloat16 for an integer

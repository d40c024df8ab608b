"""The kernels for a GPU, in Triton. Only they import it: everything else runs where it is not installed."""

import triton

# whether kernels run in Triton's interpreter on the CPU, whose dot takes a bfloat16 for an integer
INTERPRETED = bool(triton.knobs.runtime.interpret)

"""Reading packed codes (`kernels.pack`) on a GPU."""

import triton
import triton.language as tl


@triton.jit
def column_of(run, row, BITS: tl.constexpr):
    """The code of each `row` (0 to 63) of the column whose 8 * BITS bytes begin at `run`, as int32."""
    if BITS == 8:
        return tl.load(run + row).to(tl.int32)
    if BITS == 4 or BITS == 6:
        code = (tl.load(run + row % 32).to(tl.int32) >> (row // 32 * 4)) & 15
        if BITS == 6:
            code += ((tl.load(run + 32 + row % 16).to(tl.int32) >> (row // 16 * 2)) & 3) << 4
        return code
    code = (tl.load(run + row % 16).to(tl.int32) >> (row // 16 * 2)) & 3
    if BITS == 3:
        code += ((tl.load(run + 16 + row % 8).to(tl.int32) >> (row // 8)) & 1) << 2
    return code

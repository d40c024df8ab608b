"""The smallest kernel: whether any can be compiled and run here."""

import torch
import triton
import triton.language as tl


def probe(device: str) -> None:
    """Compile and run a kernel on `device`. Raises what stands in the way, of any type."""
    numbers = torch.zeros(16, dtype=torch.int32, device=device)
    _count[(1,)](numbers, enable_fp_fusion=False)
    if numbers.tolist() != list(range(16)):
        raise RuntimeError(f"a kernel counted {numbers.tolist()}")


@triton.jit
def _count(numbers):
    at = tl.arange(0, 16)
    tl.store(numbers + at, at)

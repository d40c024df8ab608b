"""Memory that a disk may write into directly: page-aligned, given back to the system once the tensor is dropped."""

import mmap

import torch
from torch import Tensor

# every extent in a file and every slot in memory begins at a multiple of it: direct I/O asks for that on any disk
ALIGNMENT = 4096


def aligned(nbytes: int) -> int:
    """`nbytes` rounded up to whole pages."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def arena(nbytes: int, *, huge: bool = True) -> Tensor:
    """`nbytes` of zeros aligned to a page. They take memory only once touched, with `huge` in huge pages where there are any."""
    assert nbytes >= 0, f"arena of {nbytes} bytes"
    pages = mmap.mmap(-1, max(aligned(nbytes), ALIGNMENT), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge and nbytes >= 2 << 20 and hasattr(mmap, "MADV_HUGEPAGE"):
        _advise_huge(pages)
    return torch.frombuffer(pages, dtype=torch.uint8)[:nbytes]


def _advise_huge(pages: mmap.mmap) -> None:
    try:
        pages.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        # a kernel built without huge pages: the same memory, in small ones
        return

"""Parts of residual codecs: what goes in comes out, at aligned places, and weights are kept as they are where that is smaller."""

import pytest
import torch

from understudy.codecs import Encoded
from understudy.codecs.beside_copy import ALIGNED, HEADER, cut, joined, numbers_of, plain, verbatim


def test_sections_come_out_as_they_went_in() -> None:
    sections = [torch.randint(0, 256, (size,), dtype=torch.uint8) for size in (5, 0, 64, 130)]
    blocks = torch.zeros(2, 8, 64, dtype=torch.bfloat16)
    data = joined([3, 1 << 40, 7], sections, blocks)
    assert data.numel() == HEADER + 64 + 0 + 64 + 192 and data.numel() % ALIGNED == 0
    assert numbers_of(data, 4) == [3, 1 << 40, 7, 0]
    assert all(torch.equal(one, other) for one, other in zip(cut(data, [5, 0, 64, 130]), sections, strict=True))
    assert plain(Encoded(data, 2, 8, torch.bfloat16, {})) is None
    with pytest.raises(AssertionError, match="has 320"):
        cut(data, [5, 0, 64, 66])


def test_what_would_be_no_smaller_is_kept_as_it_is() -> None:
    blocks = torch.randn(1, 2, 64).bfloat16()
    data = joined([3], [torch.zeros(192, dtype=torch.uint8)], blocks)
    assert torch.equal(data, verbatim(blocks))
    kept = plain(Encoded(data, 1, 2, torch.bfloat16, {}))
    assert kept is not None and torch.equal(kept, blocks)

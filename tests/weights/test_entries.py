"""A weight is cut in parts that cover it, and an entry counts its own bytes and extents."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.weights.entries import PART_BYTES, LinearEntry, Part, Stored, part_blocks
from understudy.weights.layout import LinearSpec


@pytest.mark.parametrize("shape", [(5120, 5120), (64, 30000), (100, 100), (152064, 5120), (4096, 14336)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_parts_cover_the_weight(shape: tuple[int, int], dtype: torch.dtype) -> None:
    parts = part_blocks(shape, dtype, shape[0])
    block = 64 * shape[1] * dtype.itemsize
    assert parts[0][0] == 0 and all(a + n == b for (a, n), (b, _) in pairwise(parts))
    assert sum(blocks for _, blocks in parts) == -(-shape[0] // 64)
    assert all(blocks == 1 or blocks * block <= PART_BYTES for _, blocks in parts)


def _stored(offset: int, nbytes: int) -> Stored:
    return Stored("file", offset, nbytes, torch.uint8, (nbytes,), "")


@pytest.mark.parametrize(("offset", "lead"), [(0, 0), (4096, 0), (4097, 1), (8191, 4095)])
def test_a_direct_read_begins_on_a_page(offset: int, lead: int) -> None:
    stored = _stored(offset, 5000)
    assert (stored.lead, stored.span, stored.padded) == (lead, lead + 5000, 8192)


def test_an_entry_counts_its_bytes_and_lists_its_extents() -> None:
    substitute = {"codes": _stored(0, 10), "scales": _stored(4096, 20)}
    parts = tuple(Part(i, 1, _stored(4096 * i, 30)) for i in range(2))
    entry = LinearEntry("up", "up.weight", (100, 7), torch.float32, "int4", substitute, "raw", parts, "")
    assert entry.nbytes == 100 * 7 * 4
    assert entry.extents == [*substitute.values(), *(part.stored for part in parts)]


@settings(max_examples=50)
@given(units=st.integers(1, 40), blocks=st.integers(1, 80), columns=st.integers(1, 9000), wide=st.booleans())
def test_no_part_has_rows_of_two_units(units: int, blocks: int, columns: int, wide: bool) -> None:
    dtype = torch.float32 if wide else torch.bfloat16
    parts = part_blocks((units * blocks * 64, columns), dtype, blocks * 64)
    alone = part_blocks((blocks * 64, columns), dtype, blocks * 64)
    assert parts == [(unit * blocks + first, count) for unit in range(units) for first, count in alone]
    # what plans count on: parts of a weight are evenly cut
    edges = [units * blocks * place // len(parts) for place in range(len(parts) + 1)]
    assert [count for _, count in parts] == [b - a for a, b in pairwise(edges)]


def test_an_entry_says_what_a_layout_says() -> None:
    names = ("up.0", "up.1")
    entry = LinearEntry("up", "up.0", (128, 7), torch.float32, "int4", {}, "raw", (), "", experts=2, pieces=names)
    assert entry.spec == LinearSpec("up", "up.0", (128, 7), experts=2, pieces=names)
    assert (entry.spec.tensors, entry.spec.unit, entry.spec.stored_shape, entry.spec.outputs) == (names, 64, (64, 7), 64)
    whole = LinearSpec("up", "up", (256, 7), experts=2)
    assert (whole.tensors, whole.unit, whole.stored_shape, whole.outputs) == (("up",), 128, (2, 128, 7), 128)

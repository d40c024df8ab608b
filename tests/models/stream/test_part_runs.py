"""Runs of parts give every bit of the weights, whichever way they lie; they are few, and none is larger than there is room for."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.fake_device import FakeDevice
from understudy.codecs import CODECS, Codec, Encoded, codec
from understudy.devices import Device
from understudy.devices.processor import Processor
from understudy.kernels.pack import block
from understudy.models.stream.exact_linear import ExactLinear
from understudy.models.stream.part_runs import Lying, PartRun, lying_in, runs_of
from understudy.quantizers import quantizer
from understudy.weights.entries import LinearEntry

pytest.importorskip("triton")
COLUMNS, BLOCKS, GAP = 64, 6, 4096


def linear(name: str, device: Device, room: int) -> tuple[ExactLinear, Tensor]:
    """An ExactLinear stored by codec `name` with room to decode `room` blocks, and its weight in blocks."""
    torch.manual_seed(3)
    weight = (torch.randn(BLOCKS * 64, COLUMNS) * 0.05).bfloat16()
    maker = quantizer("int4")
    tensors = maker.quantize(weight)
    entry = LinearEntry("linear", "linear.weight", weight.shape, weight.dtype, "int4", {}, name, (), "")
    return ExactLinear(entry, maker, tensors, torch.empty(room * COLUMNS * 64 * 2, dtype=torch.uint8), device), block(
        weight
    )


def stretch(made: ExactLinear, blocks: Tensor, sizes: list[int], gaps: list[int]) -> tuple[Tensor, list[Lying]]:
    """Parts of `sizes` blocks in one stretch of memory, with gaps of so many pages before each."""
    data, lying, first = torch.empty(0, dtype=torch.uint8), [], 0
    for size, gap in zip(sizes, gaps, strict=True):
        bytes_of = codec(made.entry.codec).encode(blocks[first : first + size], made.substitute(first, size)).view(-1)
        data = torch.cat([data, torch.full((gap * GAP,), 0xFF, dtype=torch.uint8), bytes_of])
        lying.append(Lying(len(data) - len(bytes_of), len(bytes_of), first, size))
        first += size
    return data, lying


def checked(runs: list[PartRun], data: Tensor, blocks: Tensor) -> None:
    """All of `blocks` are found, in order."""
    found = torch.cat([run.blocks(data).clone() for run in runs])
    assert torch.equal(found.view(torch.int16), blocks[: len(found)].view(torch.int16))
    assert [run.first for run in runs] == [0, *(run.first + run.count for run in runs)][:-1]


@pytest.mark.parametrize("fake", [True, False], ids=["device", "processor"])
@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_runs_give_every_bit_wherever_parts_lie(name: str, fake: bool, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 2), min_size=1, max_size=3))
    gaps = data.draw(st.lists(st.integers(0, 1), min_size=len(sizes), max_size=len(sizes)))
    room = data.draw(st.integers(2, BLOCKS))
    made, blocks = linear(name, FakeDevice() if fake else Processor(1), room)
    whole, lying = stretch(made, blocks, sizes, gaps)
    runs = runs_of(made, lying)
    checked(runs, whole, blocks)
    if made.codec.in_place:
        joined = sum(not gap for gap in gaps[1:])
        assert len(runs) == len(sizes) - joined
    else:
        assert all(run.count <= room for run in runs)
        assert all(one.count + two.count > room or len(runs) <= 2 for one, two in pairwise(runs))


def test_parts_in_memory_are_one_stretch() -> None:
    made, blocks = linear("delta", FakeDevice(), BLOCKS)
    whole, lying = stretch(made, blocks, [1, 2, 2], [1, 0, 1])
    arena = torch.cat([torch.zeros(64, dtype=torch.uint8), whole])
    pieces = [(arena[64:][part.start : part.start + part.nbytes], part.first_block, part.blocks) for part in lying]
    data, found = lying_in(pieces)
    assert found[0].start == 0 and [two.start - one.start for one, two in pairwise(found)] == [
        two.start - one.start for one, two in pairwise(lying)
    ]
    (run,) = runs_of(made, found)
    checked([run], data, blocks)
    assert data.data_ptr() == pieces[0][0].data_ptr()


def test_a_run_on_a_device_is_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeDevice()
    asked: list[int] = []
    decode = device.decode

    def counting(kind: Codec, part: Encoded, out: Tensor | None = None) -> Tensor:
        asked.append(part.count)
        return decode(kind, part, out)

    monkeypatch.setattr(device, "decode", counting)
    made, blocks = linear("delta", device, 4)
    whole, lying = stretch(made, blocks, [1, 1, 1, 1, 1, 1], [0] * 6)
    checked(runs_of(made, lying), whole, blocks)
    # six blocks, room for four: as even as parts allow
    assert asked == [3, 3]

"""What stays in fast memory is read whole and right, by whatever way the device takes it; damage is found."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.fake_device import FakeDevice
from tests.weights.made import layout, tensors, write
from understudy.codecs import CODECS
from understudy.devices import Device
from understudy.devices.processor import Processor
from understudy.errors import StoreError, TransferError, UsageError
from understudy.kernels.pack import unblock
from understudy.models.stream import load
from understudy.models.stream.exact_linear import ExactLinear
from understudy.models.stream.load import extent, read_all, read_whole, refuse_wrong_decoding
from understudy.models.stream.weights import largest
from understudy.quantizers import quantizer
from understudy.tiers import ReadSettings
from understudy.tiers.memory import ALIGNMENT
from understudy.weights.checkpoint import Checkpoint
from understudy.weights.entries import Stored
from understudy.weights.prepare import prepare
from understudy.weights.recipe import Recipe
from understudy.weights.store import Store

SETTINGS = ReadSettings(block=4096, threads=2)


def prepared(tmp_path: Path, codec: str = "raw", changes: Mapping[str, torch.dtype] | None = None) -> Store:
    """`changes`: types of some tensors in the place of their own."""
    made = {name: tensor.to((changes or {}).get(name, tensor.dtype)) for name, tensor in tensors().items()}
    checkpoint = Checkpoint.open(write(tmp_path / "model", made))
    return prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe(codec=codec))


def everything(store: Store) -> list[Stored]:
    parts = [part.stored for entry in store.linears.values() for part in entry.parts]
    return [*store.shared.values(), *parts, store.embedding]


@pytest.mark.parametrize("device", [Processor(1), FakeDevice(triton=False)], ids=["in place", "by way of the host"])
@pytest.mark.parametrize("in_flight", [1, 2, 16])
def test_tensors_are_what_was_prepared(
    device: Device, in_flight: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "IN_FLIGHT", in_flight)
    store = prepared(tmp_path, "link")
    wanted, told = everything(store), []
    assert any(stored.lead for stored in wanted), "a part that begins in the middle of a page"
    found = read_all(store, wanted, SETTINGS, device, lambda done, total: told.append((done, total)))
    assert all(torch.equal(tensor, store.read(stored)) for tensor, stored in zip(found, wanted, strict=True))
    assert len(told) == len(wanted) and told == sorted(told) and told[-1][0] == told[-1][1]


def test_nothing_is_read_where_nothing_is_wanted(tmp_path: Path) -> None:
    assert read_all(prepared(tmp_path), [], SETTINGS, Processor(1)) == []


@pytest.mark.parametrize("codec", CODECS)
def test_a_whole_linear_has_every_bit_of_the_source(codec: str, tmp_path: Path) -> None:
    store, device = prepared(tmp_path, codec), FakeDevice(triton=False)
    for entry in store.linears.values():
        told: list[tuple[float, float]] = []
        whole = read_whole(store, {7: entry}, {}, SETTINGS, device, lambda *said, told=told: told.append(said))[7]
        assert torch.equal(unblock(whole, entry.shape[0]), tensors()[entry.weight])
        assert told == sorted(told) and told[-1][0] == told[-1][1] > 0


def test_damage_is_found_before_anything_is_used(tmp_path: Path) -> None:
    store = prepared(tmp_path)
    stored = everything(store)[-2]
    with store.file(stored.file).open("r+b") as file:
        file.seek(stored.offset + 5)
        byte = file.read(1)
        file.seek(stored.offset + 5)
        file.write(bytes([byte[0] ^ 4]))
    with pytest.raises(StoreError, match=f"is damaged in bytes {stored.offset} to"):
        read_all(store, everything(store), SETTINGS, Processor(1))


def test_a_file_that_is_cut_short_is_an_error(tmp_path: Path) -> None:
    store = prepared(tmp_path)
    stored = next(iter(store.linears.values())).parts[0].stored
    with store.file(stored.file).open("r+b") as file:
        file.truncate(stored.offset + 10)
    with pytest.raises((TransferError, StoreError)):
        read_all(store, [stored], SETTINGS, Processor(1))


def test_extents_are_whole_pages_around_what_is_stored(tmp_path: Path) -> None:
    store = prepared(tmp_path, "link")
    for stored in everything(store):
        place = extent(store, stored)
        assert place.offset % ALIGNMENT == 0 and place.offset + stored.lead == stored.offset
        assert place.nbytes == stored.lead + stored.nbytes


def held_on(device: FakeDevice, store: Store) -> list[ExactLinear]:
    """All Linears of a Store with their copies on a device."""
    linears = []
    for entry in store.linears.values():
        copy = read_all(store, list(entry.substitute.values()), SETTINGS, device)
        held = dict(zip(entry.substitute, copy, strict=True))
        linears.append(ExactLinear(entry, quantizer(entry.quantizer), held, device.arena(largest([entry])), device))
    return linears


def test_each_type_of_weights_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of float16 among those of bfloat16 has a kernel more."""
    pytest.importorskip("triton")
    from understudy.kernels.gpu import trailing

    store = prepared(tmp_path, "delta", {"layers.1.down.weight": torch.float16})
    linears = held_on(FakeDevice(), store)
    assert {linear.entry.dtype for linear in linears if linear.codec.name == "delta"} == {torch.bfloat16, torch.float16}
    refuse_wrong_decoding(store, linears, SETTINGS)
    monkeypatch.setattr(trailing, "narrow", lambda *given: given[3])
    with pytest.raises(UsageError, match=r"other weights than were prepared \(layers\.1\.down, stored as delta"):
        refuse_wrong_decoding(store, linears, SETTINGS)


def test_a_device_that_decodes_wrongly_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from understudy.kernels.gpu import residual

    store = prepared(tmp_path, "delta")
    linears = held_on(FakeDevice(), store)
    assert any(linear.codec.name == "delta" for linear in linears)
    refuse_wrong_decoding(store, linears, SETTINGS)
    decode = residual.decode

    def one_bit_off(*given: Tensor) -> Tensor:
        made = decode(*given)
        made.view(torch.int16)[0, 3, 5] ^= 1
        return made

    monkeypatch.setattr(residual, "decode", one_bit_off)
    with pytest.raises(UsageError, match=r"other weights than were prepared \(.*stored as delta beside int4.*--codec raw"):
        refuse_wrong_decoding(store, linears, SETTINGS)

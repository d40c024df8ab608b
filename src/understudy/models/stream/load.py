"""Reading what stays in fast memory: past the page cache, straight into one arena, every extent against its checksum."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ...codecs import Encoded, codec
from ...devices import Device
from ...devices.processor import Processor
from ...errors import UsageError
from ...kernels.pack import BLOCK, blocks_of, unblock
from ...quantizers import Tensors, quantizer
from ...tiers import Extent, ReadSettings
from ...tiers.disk import DiskFetch, DiskTier
from ...tiers.memory import aligned, arena
from ...weights.entries import LinearEntry, Part, Stored
from ...weights.files import checksum
from ...weights.store import Store
from .exact_linear import ExactLinear

# reads that are under way together
IN_FLIGHT = 16
# the same for parts that are decoded when they come, which take memory only till then
PARTS_IN_FLIGHT = 2
# called with what is done and what there is to do
Progress = Callable[[float, float], None]


def extent(store: Store, stored: Stored) -> Extent:
    """The whole pages that hold `stored`, which begins `stored.lead` bytes after their start."""
    return Extent(store.file(stored.file), stored.offset - stored.lead, stored.span)


def read_all(
    store: Store,
    wanted: Sequence[Stored],
    settings: ReadSettings,
    device: Device,
    progress: Progress | None = None,
) -> list[Tensor]:
    """The tensors `wanted`, views of one new arena of `device`. Raises StoreError or TransferError.

    `progress` is told the bytes that are there and those there will be."""
    edges = [0, *accumulate(aligned(stored.span) for stored in wanted)]
    memory = device.arena(edges[-1])
    places = [memory[start:end] for start, end in pairwise(edges)]
    for number, room in _arriving(store, wanted, settings, lambda number: device.incoming(places[number]), IN_FLIGHT):
        if room is not places[number]:
            places[number].copy_(room)
        if progress is not None:
            progress(edges[number + 1], edges[-1])
    return [_tensor(place, stored) for place, stored in zip(places, wanted, strict=True)]


def _arriving(
    store: Store, wanted: Sequence[Stored], settings: ReadSettings, room_for: Callable[[int], Tensor], in_flight: int
) -> Iterator[tuple[int, Tensor]]:
    """The number of each of `wanted` in turn, and the bytes `room_for(number)` of host memory, filled and checked.

    At most `in_flight` of them are being read."""
    tier = DiskTier([extent(store, stored) for stored in wanted], block=settings.block, threads=settings.threads)
    under_way: deque[tuple[int, DiskFetch, Tensor]] = deque()

    def arrived() -> tuple[int, Tensor]:
        number, fetch, room = under_way.popleft()
        fetch.wait()
        store.check(wanted[number], room[wanted[number].lead : wanted[number].span])
        return number, room

    try:
        for number in range(len(wanted)):
            if len(under_way) == in_flight:
                yield arrived()
            room = room_for(number)
            under_way.append((number, tier.fetch(number, room), room))
        while under_way:
            yield arrived()
    finally:
        tier.close()


def _tensor(room: Tensor, stored: Stored) -> Tensor:
    """The tensor that was read into `room`."""
    return room[stored.lead : stored.span].view(stored.dtype).view(stored.shape)


def whole_bytes(columns: int, blocks: int, dtype: torch.dtype) -> int:
    """Bytes of `blocks` blocks of exact weights with `columns` columns."""
    return blocks * BLOCK * columns * dtype.itemsize


def read_whole(
    store: Store,
    entries: Mapping[int, LinearEntry],
    held: Mapping[int, Tensors],
    settings: ReadSettings,
    device: Device,
    progress: Progress | None = None,
) -> dict[int, Tensor]:
    """The exact blocks [nb, K, 64] of each Linear of `entries`: parts are read and decoded one after another.

    The host decodes them, in its own memory. `held`: substitutes that lie there already; others are read for a while.
    `progress` is told the bytes that are done and all of them. Raises StoreError or TransferError."""
    host = Processor(threads=1)
    plain = {index: entry for index, entry in entries.items() if codec(entry.codec).needs_substitute}
    missing = {index: list(entry.substitute) for index, entry in plain.items() if index not in held}
    wanted: list[tuple[int, Part | str, Stored]] = []
    for index, entry in entries.items():
        wanted += [(index, name, entry.substitute[name]) for name in missing.get(index, ())]
        wanted += [(index, part, part.stored) for part in entry.parts]
    edges = [*accumulate(stored.span for _, _, stored in wanted)]
    stored = [place for _, _, place in wanted]
    substitutes = {index: dict(held[index]) if index in held else {} for index in plain}
    found: dict[int, Tensor] = {}
    rooms = _arriving(store, stored, settings, lambda number: host.arena(aligned(stored[number].span)), PARTS_IN_FLIGHT)
    for number, room in rooms:
        index, what, place = wanted[number]
        entry = entries[index]
        if isinstance(what, str):
            substitutes[index][what] = _tensor(room, place)
            continue
        if what is entry.parts[0]:
            count = blocks_of(entry.shape[0])
            nbytes = whole_bytes(entry.shape[1], count, entry.dtype)
            found[index] = host.arena(nbytes).view(entry.dtype).view(count, entry.shape[1], BLOCK)
        _decode(entry, what, _tensor(room, place), substitutes.get(index, {}), found[index])
        if what is entry.parts[-1]:
            found[index] = found[index].to(device.where)
            substitutes.pop(index, None)
        if progress is not None:
            progress(edges[number], edges[-1])
    return found


def read_cut(
    store: Store, portions: Mapping[int, tuple[LinearEntry, int, int]], settings: ReadSettings, device: Device
) -> dict[int, dict[str, Tensor]]:
    """Of each Linear's substitute, what belongs to the blocks that its portion says: entry, first block and how many.

    They lie in one arena of `device`; each is read whole, one after another. Raises StoreError or TransferError."""
    wanted = [(index, name, stored) for index, (entry, _, _) in portions.items() for name, stored in entry.substitute.items()]

    def room_of(index: int, stored: Stored) -> int:
        entry, _, blocks = portions[index]
        return aligned(-(-stored.nbytes * blocks // blocks_of(entry.shape[0])))

    memory = device.arena(sum(room_of(index, stored) for index, _, stored in wanted))
    found: dict[int, dict[str, Tensor]] = {index: {} for index in portions}
    whole: dict[str, Tensor] = {}
    stored_ones = [stored for _, _, stored in wanted]
    used = 0
    for number, room in _arriving(
        store, stored_ones, settings, lambda number: arena(aligned(stored_ones[number].span)), PARTS_IN_FLIGHT
    ):
        index, name, stored = wanted[number]
        entry, first, blocks = portions[index]
        whole[name] = _tensor(room, stored)
        if len(whole) < len(entry.substitute):
            continue
        for name, tensor in quantizer(entry.quantizer).cut(whole, first, blocks).items():
            place = memory[used : used + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            place.copy_(tensor)
            found[index][name] = place
            used += aligned(tensor.nbytes)
        whole.clear()
    return found


def refuse_wrong_decoding(store: Store, linears: Sequence[ExactLinear], settings: ReadSettings) -> None:
    """Raise UsageError where a device's own kernels give other weights than were prepared: a compiler or a driver may be at fault.

    Of each kind of stored weights that need such kernels, the smallest Linear is decoded and compared with its checksum; where a
    device has only some of its blocks, with what the host decodes."""
    kinds: dict[tuple[str, str, torch.dtype], ExactLinear] = {}
    for linear in linears:
        if linear.device.own_memory and linear.codec.needs_triton and linear.entry.parts:
            kind = (linear.codec.name, linear.quantizer.name, linear.entry.dtype)
            kinds[kind] = min(kinds.get(kind, linear), linear, key=lambda one: one.entry.nbytes)
    for linear in kinds.values():
        wanted = linear.entry.checksum or _decoded_checksum(store, linear, settings, Processor(threads=1))
        if _decoded_checksum(store, linear, settings, linear.device) != wanted:
            stored = f"{linear.entry.module}, stored as {linear.codec.name} beside {linear.quantizer.name}"
            raise UsageError(
                f"{linear.device.name} decodes other weights than were prepared ({stored}): its compiler or driver is at fault. Use"
                " --codec raw, or --device cpu."
            )


def _decoded_checksum(store: Store, linear: ExactLinear, settings: ReadSettings, device: Device) -> str:
    """The checksum of a Linear's weight, decoded by `device`."""
    parts = linear.entry.parts
    stored = [part.stored for part in parts]
    there = linear if device is linear.device else linear.on_host(device)
    pieces = []
    for number, room in _arriving(store, stored, settings, lambda number: arena(aligned(stored[number].span)), PARTS_IN_FLIGHT):
        data = room[stored[number].lead : stored[number].span].to(device.where)
        pieces.append(there.blocks(data, parts[number].first_block, parts[number].blocks).to("cpu", copy=True))
    return checksum([unblock(torch.cat(pieces), linear.entry.shape[0])])


def _decode(entry: LinearEntry, part: Part, data: Tensor, substitute: Tensors, out: Tensor) -> None:
    """Put the exact blocks of `part` where they belong in `out` [nb, K, 64], the whole weight of `entry`."""
    columns, first = entry.shape[1], part.first_block
    pieces = quantizer(entry.quantizer).cut(substitute, first, part.blocks) if substitute else {}
    place = out[first : first + part.blocks]
    codec(entry.codec).decode(Encoded(data.view(-1), part.blocks, columns, entry.dtype, pieces), place)

"""Reading what stays in fast memory: past the page cache, straight into one arena, every extent against its checksum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..codecs import codec
from ..devices.accelerator import Accelerator
from ..kernels.pack import BLOCK, blocks_of
from ..quantizers import quantizer
from ..tiers import Extent
from ..tiers.disk import DiskTier
from ..tiers.memory import aligned, arena
from ..weights.entries import LinearEntry, Stored
from ..weights.store import Store

IN_FLIGHT = 16


@dataclass(frozen=True)
class Link:
    """How to read the slow tier: bytes a read, reader threads, and a limit in bytes/s (0: none)."""

    block: int
    threads: int
    throttle: float = 0.0


def extent(store: Store, stored: Stored) -> Extent:
    """From the start of a page on: `stored` begins after its `lead`."""
    return Extent(store.file(stored.file), stored.offset - stored.lead, stored.span)


def read_all(
    store: Store,
    wanted: Sequence[Stored],
    link: Link,
    progress: Callable[[float, float], None] | None = None,
    device: Accelerator | None = None,
) -> list[Tensor]:
    """The tensors of all extents, views of one new arena (of the device). Raises StoreError or TransferError."""
    places = [0]
    for stored in wanted:
        places.append(places[-1] + aligned(stored.span))
    memory = arena(places[-1]) if device is None else device.arena(places[-1])
    rooms: list[Tensor] = []  # where what is coming goes: its place, or, for a device, memory of its own for a while
    tier = DiskTier([extent(store, stored) for stored in wanted], block=link.block, threads=link.threads)
    try:
        fetches = []
        for i in range(len(wanted) + IN_FLIGHT):
            if i < len(wanted):
                size = places[i + 1] - places[i]
                rooms.append(memory[places[i] : places[i + 1]] if device is None else arena(size))
                fetches.append(tier.fetch(i, rooms[i][:size]))
            if i >= IN_FLIGHT and (done := i - IN_FLIGHT) < len(wanted):
                fetches[done].wait()
                store.check(wanted[done], rooms[done][wanted[done].lead : wanted[done].span])
                if device is not None:
                    memory[places[done] : places[done + 1]].copy_(rooms[done][: places[done + 1] - places[done]])
                rooms[done] = memory[:0]
                if progress is not None:
                    progress(places[done + 1], places[-1])
    finally:
        tier.close()
    return [
        memory[start + s.lead : start + s.span].view(s.dtype).view(s.shape)
        for start, s in zip(places, wanted, strict=False)
    ]


def whole_bytes(columns: int, blocks: int, dtype: torch.dtype) -> int:
    """Of so many blocks of exact weights."""
    return blocks * BLOCK * columns * dtype.itemsize


def read_whole(
    store: Store,
    entry: LinearEntry,
    link: Link,
    progress: Callable[[float, float], None] | None = None,
    device: Accelerator | None = None,
) -> Tensor:
    """The exact blocks [nb, K, 64] of a Linear in an arena of their own: its parts are read and made whole one after another.

    Raises StoreError or TransferError."""
    (rows, columns), maker = entry.shape, quantizer(entry.quantizer)
    count = blocks_of(rows)
    whole = arena(whole_bytes(columns, count, entry.dtype)).view(entry.dtype).view(count, columns, BLOCK)
    names = list(entry.substitute) if codec(entry.codec).needs_substitute else []
    substitute = dict(zip(names, read_all(store, [entry.substitute[name] for name in names], link), strict=True))
    for part in entry.parts:
        (data,) = read_all(store, [part.stored], link)
        first, last = part.first_block, part.first_block + part.blocks
        pieces = maker.cut(substitute, first, part.blocks) if names else {}
        codec(entry.codec).decode(data.view(-1), part.blocks, columns, entry.dtype, pieces, whole[first:last])
        if progress is not None:
            progress(last, count)
    return whole if device is None else whole.to(device.where)

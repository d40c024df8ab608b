"""Reading what stays in fast memory: past the page cache, straight into one arena, every extent against its checksum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..codecs import codec
from ..devices import Device
from ..devices.processor import Processor
from ..kernels.pack import BLOCK, blocks_of
from ..quantizers import quantizer
from ..tiers import Extent, ReadSettings
from ..tiers.disk import DiskTier
from ..tiers.memory import aligned
from ..weights.entries import LinearEntry, Stored
from ..weights.store import Store

# reads that are under way together
IN_FLIGHT = 16


def extent(store: Store, stored: Stored) -> Extent:
    """The whole pages that hold `stored`, which begins `stored.lead` bytes after their start."""
    return Extent(store.file(stored.file), stored.offset - stored.lead, stored.span)


def read_all(
    store: Store,
    wanted: Sequence[Stored],
    settings: ReadSettings,
    device: Device,
    progress: Callable[[float, float], None] | None = None,
) -> list[Tensor]:
    """The tensors `wanted`, views of one new arena of `device`. Raises StoreError or TransferError."""
    edges = [0]
    for stored in wanted:
        edges.append(edges[-1] + aligned(stored.span))
    memory = device.arena(edges[-1])
    places = [memory[start:end] for start, end in pairwise(edges)]
    # host memory of what is under way: the place itself, or memory that is dropped once it was copied there
    rooms: dict[int, Tensor] = {}
    tier = DiskTier([extent(store, stored) for stored in wanted], block=settings.block, threads=settings.threads)
    try:
        fetches = []
        for i in range(len(wanted) + IN_FLIGHT):
            if i < len(wanted):
                rooms[i] = device.incoming(places[i])
                fetches.append(tier.fetch(i, rooms[i]))
            if i >= IN_FLIGHT and (done := i - IN_FLIGHT) < len(wanted):
                fetches[done].wait()
                room = rooms.pop(done)
                store.check(wanted[done], room[wanted[done].lead : wanted[done].span])
                if room is not places[done]:
                    places[done].copy_(room)
                if progress is not None:
                    progress(edges[done + 1], edges[-1])
    finally:
        tier.close()
    return [place[s.lead : s.span].view(s.dtype).view(s.shape) for place, s in zip(places, wanted, strict=True)]


def whole_bytes(columns: int, blocks: int, dtype: torch.dtype) -> int:
    """Bytes of `blocks` blocks of exact weights with `columns` columns."""
    return blocks * BLOCK * columns * dtype.itemsize


def read_whole(
    store: Store,
    entry: LinearEntry,
    settings: ReadSettings,
    device: Device,
    progress: Callable[[float, float], None] | None = None,
) -> Tensor:
    """The exact blocks [nb, K, 64] of a Linear in an arena of their own: its parts are read and decoded one after another.

    The host decodes them, in its own memory. Raises StoreError or TransferError."""
    host = Processor(threads=1)
    rows, columns = entry.shape
    count = blocks_of(rows)
    whole = host.arena(whole_bytes(columns, count, entry.dtype)).view(entry.dtype).view(count, columns, BLOCK)
    names = list(entry.substitute) if codec(entry.codec).needs_substitute else []
    tensors = read_all(store, [entry.substitute[name] for name in names], settings, host)
    substitute = dict(zip(names, tensors, strict=True))
    for part in entry.parts:
        (data,) = read_all(store, [part.stored], settings, host)
        first, last = part.first_block, part.first_block + part.blocks
        pieces = quantizer(entry.quantizer).cut(substitute, first, part.blocks) if names else {}
        codec(entry.codec).decode(data.view(-1), part.blocks, columns, entry.dtype, pieces, whole[first:last])
        if progress is not None:
            progress(last, count)
    return whole.to(device.where)

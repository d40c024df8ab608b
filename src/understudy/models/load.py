"""Reading what stays in fast memory: past the page cache, straight into one arena, every extent against its checksum."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ..codecs import codec
from ..devices import Device
from ..devices.processor import Processor
from ..kernels.pack import BLOCK, blocks_of
from ..quantizers import quantizer
from ..tiers import Extent, ReadSettings
from ..tiers.disk import DiskFetch, DiskTier
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
    """The tensors `wanted`, views of one new arena of `device`. Raises StoreError or TransferError.

    `progress` is told the bytes that are there and those there will be."""
    edges = [0, *accumulate(aligned(stored.span) for stored in wanted)]
    memory = device.arena(edges[-1])
    places = [memory[start:end] for start, end in pairwise(edges)]
    tier = DiskTier([extent(store, stored) for stored in wanted], block=settings.block, threads=settings.threads)
    # number, fetch, and the host memory it fills: the place itself, or memory that is dropped once it was copied there
    under_way: deque[tuple[int, DiskFetch, Tensor]] = deque()

    def finish_one() -> None:
        number, fetch, room = under_way.popleft()
        fetch.wait()
        store.check(wanted[number], room[wanted[number].lead : wanted[number].span])
        if room is not places[number]:
            places[number].copy_(room)
        if progress is not None:
            progress(edges[number + 1], edges[-1])

    try:
        for number, place in enumerate(places):
            if len(under_way) == IN_FLIGHT:
                finish_one()
            room = device.incoming(place)
            under_way.append((number, tier.fetch(number, room), room))
        while under_way:
            finish_one()
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

"""What each layer of a model takes in memory, of one sequence."""

from __future__ import annotations

import torch

from ..compressed import spare_entries
from ..layer_states import SCRATCH, LayerShape
from ..plan.demand import LayerSize, SpillSizes
from ..recurrent import DEEPEST
from ..spilled import ROOMS, room_bytes, spillable
from .stock.shape import ModelShape, cache_dtype


def layer_size(shape: ModelShape, index: int, dtype: torch.dtype) -> LayerSize:
    """What layer `index` keeps of one sequence."""
    layer, kept = shape.layers[index], cache_dtype(dtype)
    if layer.compressed is not None:
        return _compressed_size(layer, index, kept)
    records = layer.recurrent.record_bytes(kept) if layer.recurrent is not None else 0
    return LayerSize(
        token_bytes=layer.token_bytes(kept.itemsize),
        slots=layer.window_slots,
        state_bytes=layer.recurrent.row_bytes(DEEPEST, kept) - DEEPEST * records if layer.recurrent is not None else 0,
        record_bytes=records,
        reads=index if layer.reads is None else layer.reads,
    )


def _compressed_size(layer: LayerShape, index: int, kept: torch.dtype) -> LayerSize:
    """The same where keys of old tokens are compressed: an entry of each block of the text, and beside these the latest tokens with
    what entries are made of, and entries of a tree's nodes."""
    compressed = layer.compressed
    assert compressed is not None
    entry = layer.key_size + compressed.index_size
    token = layer.key_size + compressed.parts(layer.key_size) + compressed.parts(compressed.index_size)
    return LayerSize(
        token_bytes=-(-entry * kept.itemsize // compressed.rate),
        state_bytes=(token * layer.window_slots + entry * spare_entries(SCRATCH)) * kept.itemsize,
        reads=index,
    )


def spill_sizes(shape: ModelShape, dtype: torch.dtype, threads: int) -> SpillSizes | None:
    """What spilling takes; None unless all layers that see the whole text can spill."""
    itemsize = cache_dtype(dtype).itemsize
    whole = [layer for layer in shape.layers if layer.numbers and not layer.window_slots]
    if not whole or not all(spillable(layer, itemsize) for layer in whole):
        return None
    return SpillSizes(
        token_bytes=sum(layer.numbers for layer in whole) * itemsize,
        rooms_bytes=ROOMS * max(room_bytes(layer, itemsize, threads) for layer in whole),
        threads=threads,
    )

"""Compiling every kernel before the weights take their room, so that the memory it takes for a while comes before theirs."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch

from ..devices.processor import Processor
from ..kernels import draft_channels, draft_delta, draft_mixture, spilled_attention
from ..kernels.chosen_keys import IndexQuery
from ..kernels.draft_chain import lead
from ..kernels.recurrence import RuleStep
from ..quantizers import quantizer
from ..recurrent import RecurrentShape, RecurrentState, Room
from ..tree import Nodes, TokenTree
from ..weights.entries import LinearEntry
from ..weights.store import Store
from .compile_ahead import WHAT, attend, attend_drafted, choose, compiling
from .recurrent_layers.channel_rule import recur
from .stock.shape import ModelShape, cache_dtype
from .stream.exact_linear import ExactLinear
from .stream.load import whole_bytes

# seconds after which the user is told what takes so long
LONG = 1.5


def compile_kernels(
    store: Store,
    config: Any,
    dtype: torch.dtype,
    drafts: bool,
    report: Callable[[str, float, float], None] | None = None,
    *,
    spills: bool = False,
    small: bool = False,
) -> None:
    """Use every kernel that running `store` on the processor needs once, on the smallest weight of each kind.
    `spills`: so are those for keys and values that lie in a file; `small`: those for such of 8 bits, in place of others.

    Machine code that an earlier run kept on disk is only read; `report` is told when compiling takes longer than LONG."""
    with compiling(dtype, False) as others:
        others.wait(report)
    tell = threading.Timer(LONG, lambda: report and report(WHAT, 0, 0))
    tell.daemon = True
    tell.start()
    try:
        # States are kept where nothing has 8 bits, on one processor.
        shape = ModelShape.of(config, small=small, latent=not small)
        if spills:
            spilled_attention.compile_kernels(cache_dtype(dtype), shape.latent)
        _use_all(store, shape, dtype, drafts)
    finally:
        tell.cancel()


@torch.inference_mode()
def _use_all(store: Store, shape: ModelShape, dtype: torch.dtype, drafts: bool) -> None:
    """`compile_kernels` itself; gives the memory that compiling took back to the system."""
    # one thread: attention is not shared out for so little
    processor = Processor(threads=1)
    smallest: dict[tuple[str, str, torch.dtype], LinearEntry] = {}
    for entry in sorted(store.linears.values(), key=lambda entry: entry.shape[0] * entry.shape[1], reverse=True):
        smallest[entry.quantizer, entry.codec, entry.dtype] = entry
    for entry in smallest.values():
        _use(store, entry, dtype, drafts, processor)
    layers = shape.layers
    for layer in [layer for layer in layers if layer.kv_heads][:1]:
        attend(processor, layer, dtype)
        if drafts:
            attend_drafted(layer, dtype)
            lead()
            if any(entry.mixture for entry in store.linears.values()):
                draft_mixture.through()
    chooses = any(layer.index_size or (layer.compressed is not None and layer.compressed.index_size) for layer in layers)
    if chooses and not shape.pools:
        _choose(processor, dtype, shape.heads_choose)
    recurrent = [layer.recurrent for layer in layers if layer.recurrent is not None]
    if recurrent:
        kinds = {each.by_channel for each in recurrent}
        for by_channel in kinds:
            _recur(processor, dtype, by_channel)
        if drafts and False in kinds:
            draft_delta.through()
            draft_delta.entries()
        if drafts and True in kinds:
            draft_channels.entries()
    choose()
    give_back()


def _choose(processor: Processor, dtype: torch.dtype, heads_choose: bool) -> None:
    """Choose what the second of two nodes looks at."""
    nodes = Nodes.of(TokenTree.chain([0]), 0, 1)
    asked = IndexQuery(torch.ones(1, 1, 16, dtype=dtype), None if heads_choose else torch.ones(1, 1), 1.0, 1)
    processor.choose(asked, torch.ones(1, 1, 64, 16, dtype=cache_dtype(dtype)), nodes)


def _recur(processor: Processor, dtype: torch.dtype, by_channel: bool) -> None:
    """Run one node of a recurrent layer, and fold its state."""
    shape = RecurrentShape(1, 1, 1, 1, 1, 1, by_channel=by_channel)
    state = RecurrentState(shape, Room(1, 1, cache_dtype(dtype)), processor.fold)
    nodes = Nodes.of(TokenTree.chain([0]), 0, 0)
    one = torch.ones(1, 1, 1)
    processor.convolve(one[0].to(dtype), one[0].to(dtype), None, state, nodes)
    recur(processor, RuleStep(one, one, one, one if by_channel else one[0], one[0]), state, nodes, together=False)
    processor.fold(state, 0, 0)


def _use(store: Store, entry: LinearEntry, dtype: torch.dtype, drafts: bool, processor: Processor) -> None:
    """Multiply one row by the draft's copy of `entry`, and by its first part."""
    copy = quantizer(entry.quantizer)
    substitute = store.substitute(entry)
    if drafts or not entry.parts:
        copy.linear(substitute, entry.shape, dtype)(torch.zeros(1, entry.shape[1], dtype=dtype))
    for part in entry.parts[:1]:
        buffer = processor.arena(whole_bytes(entry.shape[1], part.blocks, entry.dtype))
        exact = ExactLinear(entry, copy, substitute, buffer, processor)
        data = store.read(part.stored)
        if (product := exact.product(dtype)) is not None:
            x, out = torch.zeros(1, entry.shape[1], dtype=dtype), torch.empty(1, part.blocks, 64, dtype=dtype)
            operand, _ = exact.operand(data, part.first_block, part.blocks)
            product([(operand, 0)])([x], out)
        # weights that stay are decoded at once where there is room
        exact.blocks(data, part.first_block, part.blocks)


def give_back() -> None:
    """Return what nothing refers to any more to the system, where the C library can be asked to."""
    gc.collect()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)

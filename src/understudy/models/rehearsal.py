"""Kernels are compiled before the weights take their room, so that what compiling takes for a while is not on top of them."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch

from ..cache import FullState
from ..kernels.attention import AttentionSpec, attend
from ..kernels.exact_product import multiply
from ..quantizers import quantizer
from ..tree import Nodes, TokenTree
from ..weights.entries import LinearEntry
from ..weights.store import Store
from .exact import Exact
from .shape import ModelShape, cache_dtype

LONG = 1.5  # seconds after which it is said what takes so long


def rehearse(
    store: Store,
    config: Any,
    dtype: torch.dtype,
    drafts: bool,
    report: Callable[[str, float, float], None] | None = None,
) -> None:
    """Use every kernel that running this Store will use once, on the smallest weight of each kind, then give memory back.

    Where the machine code was kept on disk by an earlier run, this only reads it; `report` hears of it where it was not."""
    tell = threading.Timer(LONG, lambda: report and report("Compiling kernels for this processor, once", 0, 0))
    tell.daemon = True
    tell.start()
    try:
        _rehearse(store, config, dtype, drafts)
    finally:
        tell.cancel()


@torch.inference_mode()
def _rehearse(store: Store, config: Any, dtype: torch.dtype, drafts: bool) -> None:
    smallest: dict[tuple[str, str, torch.dtype], LinearEntry] = {}
    for entry in sorted(store.linears.values(), key=lambda entry: entry.shape[0] * entry.shape[1], reverse=True):
        smallest[entry.quantizer, entry.codec, entry.dtype] = entry
    for entry in smallest.values():
        _use(store, entry, dtype, drafts)
    shape = ModelShape.of(config)
    layer = FullState(shape.layers[0], 1, 64, cache_dtype(dtype), "cpu")
    query = torch.zeros(1, shape.heads, shape.layers[0].key_size, dtype=dtype)
    attend(query, layer.keys, layer.values, Nodes.of(TokenTree.chain([0]), 0, 0), AttentionSpec(scaling=1.0))
    give_back()


def _use(store: Store, entry: LinearEntry, dtype: torch.dtype, drafts: bool) -> None:
    maker, substitute = quantizer(entry.quantizer), store.substitute(entry)
    if drafts or not entry.parts:
        maker.linear(substitute, entry.shape, dtype)(torch.zeros(1, entry.shape[1], dtype=dtype))
    for part in entry.parts[:1]:
        exact = Exact(
            entry, maker, substitute, torch.empty(part.blocks * entry.shape[1] * 64 * 8, dtype=torch.uint8), False
        )
        data = store.read(part.stored)
        if exact.fused(dtype):
            x, out = torch.zeros(1, entry.shape[1], dtype=dtype), torch.empty(1, part.blocks, 64, dtype=dtype)
            operand, _ = exact.operand(data, part.first_block, part.blocks)
            multiply([x], [(operand, 0)], out)
        else:
            exact.blocks(data, part.first_block, part.blocks)


def give_back() -> None:
    """Return what was freed to the system, where the C library can be asked to."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)

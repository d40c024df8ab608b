"""What a model takes in memory: read off a Store's index, or foretold for a checkpoint that is not prepared yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..codecs import codec
from ..plan.memory import MIB, Needs
from ..quantizers import fitting
from ..quantizers.mixed import foretold
from ..sampling import BYTES_A_TOKEN, ROWS_AT_ONCE
from ..weights.checkpoint import Checkpoint
from ..weights.layout import ModelLayout
from ..weights.store import Store, part_blocks
from .target import TILE
from .weights import held

EMBEDDING_ROOM = 8 * MIB
BLOCK_ROWS = 64


@dataclass(frozen=True)
class Sizes:
    """Bytes of residual parts in the order of a pass, of substitutes that are held, of shared tensors; the widest Linear."""

    parts: tuple[int, ...]
    substitute: int
    shared: int
    widest: int


def sizes_of_store(store: Store, drafts: bool) -> Sizes:
    entries = list(store.linears.values())
    return Sizes(
        parts=tuple(part.stored.nbytes for entry in entries for part in entry.parts),
        substitute=sum(s.nbytes for entry in entries if held(entry, drafts) for s in entry.substitute.values()),
        shared=sum(stored.nbytes for stored in store.shared.values()),
        widest=max(sum(entry.shape) for entry in entries[:-1]),
    )


def sizes_of_checkpoint(checkpoint: Checkpoint, layout: ModelLayout, recipe: str, coding: str, drafts: bool) -> Sizes:
    """As `prepare` would make it; the parts of `delta` are those of usual weights, and so is a mix of bits."""
    parts: list[int] = []
    substitute = 0
    for spec, wanted in zip(layout.linears, foretold(recipe, [spec.shape for spec in layout.linears]), strict=True):
        dtype, maker = checkpoint.info(spec.weight).dtype, fitting(wanted, *spec.shape)
        used = codec(coding if codec(coding).applies(dtype, maker.name) else "raw")
        if drafts or used.name != "raw" or maker.name == "exact":
            substitute += maker.size(*spec.shape, dtype)
        if maker.name != "exact":
            weights = [blocks * BLOCK_ROWS * spec.shape[1] for _, blocks in part_blocks(spec.shape, dtype)]
            parts += [int(count * used.bits(dtype, maker.name) / 8) for count in weights]
    shared = sum(checkpoint.info(name).nbytes for name in layout.shared)
    return Sizes(tuple(parts), substitute, shared, max(sum(spec.shape) for spec in layout.linears[:-1]))


def head_shape(config: Any) -> tuple[int, int, int]:
    """Layers, kv heads and head size of the cache."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return config.num_hidden_layers, getattr(config, "num_key_value_heads", None) or heads, size


def cache_dtype(dtype: torch.dtype) -> torch.dtype:
    """float16 models keep float32 keys and values on the CPU (the same values; the attention kernel has no float16)."""
    return torch.float32 if dtype == torch.float16 else dtype


def needs(sizes: Sizes, config: Any, dtype: torch.dtype) -> Needs:
    """All that a plan has to place for a model of `config` that computes in `dtype`."""
    layers, kv_heads, size = head_shape(config)
    return Needs(
        parts=sizes.parts,
        substitute=sizes.substitute,
        shared=sizes.shared,
        kv_per_token=2 * layers * kv_heads * size * cache_dtype(dtype).itemsize,
        layers=layers,
        tile_activations=TILE * (4 * config.hidden_size + 2 * sizes.widest) * dtype.itemsize,
        logits_tile=2 * TILE * config.vocab_size * dtype.itemsize,
        choosing=config.vocab_size * ROWS_AT_ONCE * BYTES_A_TOKEN,
        embedding_cache=EMBEDDING_ROOM + TILE * config.hidden_size * dtype.itemsize,
    )

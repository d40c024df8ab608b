"""What a model takes in memory: read off a Store's index, or foretold for a checkpoint that is not prepared yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from ..codecs import codec
from ..devices.accelerator import Accelerator
from ..kernels.pack import BLOCK, blocks_of
from ..plan.memory import MIB, LevelSize, Needs
from ..plan.residents import LinearSize
from ..quantizers import fitting
from ..quantizers.mixed import foretold
from ..sampling import BYTES_A_TOKEN, choosing_bytes
from ..tiers.memory import ALIGNMENT
from ..weights.checkpoint import TensorInfo
from ..weights.entries import LinearEntry, part_blocks
from ..weights.layout import ModelLayout
from ..weights.recipe import Recipe
from ..weights.store import Store
from .load import whole_bytes
from .shape import ModelShape, cache_dtype
from .target import TILE
from .weights import held, largest

EMBEDDING_ROOM = 8 * MIB
SPLITS = 528  # blocks of sums at most that a product is made of on a device; `kernels.gpu.draft_product`
TOKENIZER = (
    320  # bytes for each entry of a vocabulary: its text, twice, and the merge that makes it; measured, see docs/log.md
)


@dataclass(frozen=True)
class Sizes:
    """Bytes of residual parts in the order of a pass, of shared tensors, of the largest part made whole where that takes room of
    its own; the most outputs that a Linear of a block has; and each Linear."""

    parts: tuple[int, ...]
    shared: int
    decoding: int
    widest: int
    linears: tuple[LinearSize, ...]

    @property
    def substitute(self) -> int:
        """Bytes of all substitutes that are held."""
        return sum(linear.substitute for linear in self.linears)


def sizes_of_store(store: Store, drafts: bool) -> Sizes:
    entries = list(store.linears.values())
    return Sizes(
        parts=tuple(part.stored.span for entry in entries for part in entry.parts),
        shared=sum(stored.nbytes for stored in store.shared.values()),
        decoding=largest(entries),
        widest=max(entry.shape[0] for entry in entries[:-1]),
        linears=tuple(_linear(entry, drafts) for entry in entries),
    )


def _linear(entry: LinearEntry, drafts: bool) -> LinearSize:
    substitute = sum(s.nbytes for s in entry.substitute.values()) if held(entry, drafts) else 0
    exact = whole_bytes(entry.shape[1], blocks_of(entry.shape[0]), entry.dtype)
    return LinearSize(substitute, exact, len(entry.parts))


def sizes_of_checkpoint(
    tensors: Mapping[str, TensorInfo], layout: ModelLayout, recipe: Recipe, drafts: bool
) -> Sizes:
    """As `prepare` would make it; the parts of `delta` are those of usual weights, and so is a mix of bits."""
    parts: list[int] = []
    linears: list[LinearSize] = []
    decoding = 0
    for spec, wanted in zip(layout.linears, foretold(recipe.quantizer, [spec.shape for spec in layout.linears]), strict=True):
        dtype, maker = tensors[spec.weight].dtype, fitting(wanted, *spec.shape)
        used = codec(recipe.codec if codec(recipe.codec).applies(dtype, maker.name) else "raw")
        held_here = drafts or used.needs_substitute or maker.name == "exact"
        substitute, before = maker.size(*spec.shape, dtype) if held_here else 0, len(parts)
        if maker.name != "exact":
            whole = [whole_bytes(spec.shape[1], blocks, dtype) for _, blocks in part_blocks(spec.shape, dtype)]
            lead = ALIGNMENT if used.linked else 0  # at most
            parts += [int(nbytes / dtype.itemsize * used.bits(dtype, maker.name) / 8) + lead for nbytes in whole]
            decoding = max(decoding, *whole) if not used.in_place else decoding
        exact = whole_bytes(spec.shape[1], blocks_of(spec.shape[0]), dtype)
        linears.append(LinearSize(substitute, exact, len(parts) - before))
    shared = sum(tensors[name].nbytes for name in layout.shared)
    widest = max(spec.shape[0] for spec in layout.linears[:-1])
    return Sizes(tuple(parts), shared, decoding, widest, tuple(linears))


def needs(sizes: Sizes, shape: ModelShape, dtype: torch.dtype, cores: int = 1) -> Needs:
    """All that a plan has to place for a model of `shape` that computes in `dtype` on `cores` processors.

    A tile holds most when the second half of a gated block is multiplied: what went into the block, three times, both halves, and
    what is being made of them."""
    logits_tile = TILE * blocks_of(shape.vocabulary) * BLOCK * dtype.itemsize
    return Needs(
        parts=sizes.parts,
        substitute=sizes.substitute,
        shared=sizes.shared,
        kv_per_token=sum(layer.numbers for layer in shape.layers) * cache_dtype(dtype).itemsize,
        layers=len(shape.layers),
        tile_activations=TILE * (5 * shape.hidden_size + 2 * sizes.widest) * dtype.itemsize,
        logits_tile=logits_tile,
        choosing=choosing_bytes(shape.vocabulary) + (2 * logits_tile if shape.changes_logits else 0),
        embedding_cache=EMBEDDING_ROOM + TILE * shape.hidden_size * dtype.itemsize,
        decoding=sizes.decoding,
        scores_per_token=TILE * shape.shared_heads * 4 * cores,
        tokenizer=shape.vocabulary * TOKENIZER,
        linears=sizes.linears,
    )


def on_device(wants: Needs, shape: ModelShape, dtype: torch.dtype, device: Accelerator) -> Needs:
    """What a model needs that drafts on a device: the whole embedding table, and its levels.

    Of a level's logits there are the products' sums, their total in the model's type (three times, where the model changes
    them), and the scores, each float32."""
    outputs = blocks_of(shape.vocabulary) * BLOCK
    logits = outputs * (4 + 4 + (3 if shape.changes_logits else 1) * dtype.itemsize)
    node = wants.tile_activations // TILE + SPLITS * BLOCK * 4 + logits
    table = shape.vocabulary * shape.hidden_size * dtype.itemsize
    levels = LevelSize(node, shape.vocabulary * BYTES_A_TOKEN)
    levels = levels if device.graphs is not None else replace(levels, recorded=0)
    return replace(wants, embedding_cache=table, levels=levels)

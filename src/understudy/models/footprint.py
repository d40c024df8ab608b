"""What a model takes in memory: read off a Store's index, or foretold for a checkpoint that is not prepared yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ..codecs import codec, suited
from ..devices import Device
from ..kernels.pack import BLOCK, blocks_of
from ..plan.demand import Footprint, LevelSize
from ..plan.residents import LinearSize
from ..quantizers import fitting
from ..sampling import BYTES_A_TOKEN, choosing_bytes
from ..tiers.memory import ALIGNMENT
from ..weights.checkpoint import TensorInfo
from ..weights.encoding import codec_for
from ..weights.entries import LinearEntry, part_blocks
from ..weights.layout import LinearSpec, ModelLayout
from ..weights.mixing import quantizers_of
from ..weights.recipe import Recipe
from ..weights.store import Store
from .embedding import EMBEDDING_ROOM
from .hashed_rows import ROW
from .layer_sizes import layer_size, spill_sizes
from .recurrent_layers.channel_rule import working_bytes
from .stock.latent import WIDENS
from .stock.shape import ModelShape
from .stream.load import whole_bytes
from .stream.weights import held, largest
from .target import TILE

# Blocks of sums at most that a product is made of on a device; `kernels.gpu.draft_product`.
SPLITS = 528
# Rows, mostly of zeros, for which a product with codes of experts makes sums wherever a node goes to one, see
# `kernels.gpu.expert_product`.
FEWEST_ROWS = 8
# Bytes for each entry of a vocabulary: its text, twice, and the merge that makes it; measured, see docs/log.md.
TOKENIZER = 320


@dataclass(frozen=True)
class WeightSizes:
    """The bytes of a model's weights in memory."""

    # Each residual part, in the order of a pass.
    part_bytes: tuple[int, ...]
    # Norms, biases and all else that both views share: bytes as they are stored, by their type.
    shared: tuple[tuple[torch.dtype, int], ...]
    # The largest part that must be decoded into a buffer.
    decoding_bytes: int
    # The most outputs that a Linear of a decoder block has.
    widest_outputs: int
    # Each Linear, in the order of a pass.
    linears: tuple[LinearSize, ...]
    # Rows and width of each table that is looked up by token, the embedding first.
    tables: tuple[tuple[int, int], ...]
    # Numbers of the Linears that widen latent states to keys and values.
    widening: frozenset[int] = frozenset()

    def with_states(self) -> WeightSizes:
        """Those of a model that attends over latent states: what would widen them is always there, exact and whole."""
        whole = {i: replace(self.linears[i], substitute_bytes=self.linears[i].exact_bytes, always=True) for i in self.widening}
        return replace(self, linears=tuple(whole.get(index, linear) for index, linear in enumerate(self.linears)))

    @property
    def substitute_bytes(self) -> int:
        """All substitutes that are held."""
        return sum(linear.substitute_bytes for linear in self.linears)

    def shared_bytes(self, dtype: torch.dtype) -> int:
        """What both views share takes in a model that computes in `dtype`: as stored, and again where that is another type."""
        copies = sum(nbytes // stored.itemsize * dtype.itemsize for stored, nbytes in self.shared if stored != dtype)
        return sum(nbytes for _, nbytes in self.shared) + copies


def sizes_of_store(store: Store, holds_substitute: bool, holds_head: bool = False) -> WeightSizes:
    """The sizes of a Store's weights, by its index. `holds_substitute`: the substitutes are held to draft with; `holds_head`: that
    of the output head is."""
    entries = list(store.linears.values())
    return WeightSizes(
        part_bytes=tuple(part.stored.span for part in store.parts()),
        shared=_by_type((stored.dtype, stored.nbytes) for stored in store.shared.values()),
        decoding_bytes=largest(entries),
        widest_outputs=_widest(entry.spec for entry in entries[:-1]),
        linears=tuple(_linear(entry, holds_substitute or (holds_head and entry is entries[-1])) for entry in entries),
        tables=_tables(store.layout, [stored.shape for stored in store.looked_up]),
        widening=_widening(store.layout.linears),
    )


def _by_type(tensors: Iterable[tuple[torch.dtype, int]]) -> tuple[tuple[torch.dtype, int], ...]:
    """The bytes of all tensors of each type."""
    found: dict[torch.dtype, int] = {}
    for dtype, nbytes in tensors:
        found[dtype] = found.get(dtype, 0) + nbytes
    return tuple(sorted(found.items(), key=str))


def _linear(entry: LinearEntry, holds_substitute: bool) -> LinearSize:
    substitute_bytes = sum(stored.nbytes for stored in entry.substitute.values())
    return LinearSize(
        substitute_bytes=substitute_bytes if held(entry, holds_substitute) else 0,
        exact_bytes=whole_bytes(entry.shape[1], blocks_of(entry.shape[0]), entry.dtype),
        parts=len(entry.parts),
        blocks=blocks_of(entry.shape[0]) if entry.parts else 0,
        decoding_bytes=substitute_bytes if codec(entry.codec).needs_substitute else 0,
        layer=_layer_of(entry.module),
        share=_share(entry.spec),
    )


def _widening(specs: Iterable[LinearSpec]) -> frozenset[int]:
    """Numbers of the Linears that widen latent states."""
    return frozenset(index for index, spec in enumerate(specs) if spec.module.endswith(f".{WIDENS}"))


def _tables(layout: ModelLayout, shapes: Sequence[tuple[int, ...]]) -> tuple[tuple[int, int], ...]:
    """Rows and width of each table, whose tensors have these `shapes`: several may be pieces of one."""
    found: dict[str, tuple[int, int]] = {}
    for module, (rows, width) in zip(("", *(table.module for table in layout.tables)), shapes, strict=True):
        found[module] = found.get(module, (0, 0))[0] + rows, width
    return tuple(found.values())


def _share(spec: LinearSpec) -> float:
    """What a token uses of a weight: of experts, those that it goes to."""
    return spec.chosen / spec.experts if spec.experts else 1.0


def _widest(specs: Iterable[LinearSpec]) -> int:
    """Outputs of the widest Linear of a decoder block. A node's row is there once for each expert that it goes to, as it goes in
    and as it comes out, by itself and with those of other tiles."""
    return max(2 * spec.chosen * (spec.outputs + spec.shape[1]) if spec.experts else spec.outputs for spec in specs)


def _layer_of(module: str) -> int:
    """The number of the decoder layer that a Linear of this name is in: the first number in it; -1 where it has none."""
    return next((int(part) for part in module.split(".") if part.isdecimal()), -1)


def sizes_of_checkpoint(
    tensors: Mapping[str, TensorInfo], layout: ModelLayout, recipe: Recipe, holds_substitute: bool,
    holds_head: bool = False,
) -> WeightSizes:  # fmt: skip
    """The sizes that a Store of these tensors would have. Parts and a mix of bits are those of usual weights."""
    head = layout.linears[-1]
    foretold = [
        _foretold(
            spec, [tensors[name] for name in spec.tensors], wanted, recipe.codec, holds_substitute or (holds_head and spec is head)
        )
        for spec, wanted in zip(layout.linears, quantizers_of(layout, recipe), strict=True)
    ]
    return WeightSizes(
        part_bytes=tuple(nbytes for linear in foretold for nbytes in linear.part_bytes),
        shared=_by_type((tensors[name].dtype, tensors[name].nbytes) for name in layout.shared),
        decoding_bytes=max(linear.decoding_bytes for linear in foretold),
        widest_outputs=_widest(layout.linears[:-1]),
        linears=tuple(linear.size for linear in foretold),
        tables=_tables(layout, [tensors[name].shape for name in layout.looked_up]),
        widening=_widening(layout.linears),
    )


@dataclass(frozen=True)
class ForetoldLinear:
    """What one weight will take once it is prepared."""

    size: LinearSize
    # Each of its residual parts.
    part_bytes: tuple[int, ...]
    # The buffer that its largest part is decoded into; 0: it is used as it lies.
    decoding_bytes: int


def _foretold(spec: LinearSpec, infos: Sequence[TensorInfo], wanted: str, coding: str, holds_substitute: bool) -> ForetoldLinear:
    dtype, (rows, columns) = infos[0].dtype, spec.shape
    quantizer = fitting(wanted, rows, columns)
    chosen = suited(codec_for(spec, coding, infos).name, dtype, quantizer.name)
    exact_bytes = whole_bytes(columns, blocks_of(rows), dtype)
    if quantizer.name == "exact":
        own = quantizer.size(rows, columns, dtype)
        whole_size = LinearSize(own, exact_bytes, 0, layer=_layer_of(spec.module), share=_share(spec))
        return ForetoldLinear(whole_size, (), 0)
    held_here = holds_substitute or chosen.needs_substitute
    whole = [whole_bytes(columns, blocks, dtype) for _, blocks in part_blocks(spec.shape, dtype, spec.unit)]
    bits = chosen.bits(dtype, quantizer.name)
    # A linked part may begin anywhere on a page: at most a page is read before it.
    lead = ALIGNMENT if chosen.linked else 0
    copy_bytes = quantizer.size(rows, columns, dtype)
    return ForetoldLinear(
        size=LinearSize(
            substitute_bytes=copy_bytes if held_here else 0,
            exact_bytes=exact_bytes,
            parts=len(whole),
            blocks=blocks_of(rows),
            decoding_bytes=copy_bytes if chosen.needs_substitute else 0,
            layer=_layer_of(spec.module),
            share=_share(spec),
        ),
        part_bytes=tuple(int(nbytes / dtype.itemsize * bits / 8) + lead for nbytes in whole),
        decoding_bytes=0 if chosen.in_place else max(whole),
    )


def footprint_of(
    sizes: WeightSizes, shape: ModelShape, dtype: torch.dtype, cores: int = 1, taps: int = 0
) -> Footprint:
    """The footprint of a model of `shape` that computes in `dtype` on `cores` processors. `taps`: hidden states it hands out.

    A tile holds most when the second half of a gated block is multiplied: three times what went into the block, both halves,
    and their product; and, all the time, what it looked up beside its embedding. That is made in float32, tile by tile. Of further
    states that layers hand on there are those that went into a layer, and what it foretells of them."""
    if shape.latent:
        sizes = sizes.with_states()
    # a bias by distance: as it is made, and in float32
    near = shape.extent * shape.heads * (dtype.itemsize + 4)
    width, *others = (width for _, width in sizes.tables)
    beside = sum(others)
    rows_bytes = TILE * (width + beside) * dtype.itemsize + 4 * TILE * beside * 4
    logits_bytes = TILE * blocks_of(shape.vocabulary) * BLOCK * dtype.itemsize
    states = 5 + taps + 2 * (shape.states - 1)
    kept_bytes = sum(min(EMBEDDING_ROOM, rows * (width * dtype.itemsize + ROW)) for rows, width in sizes.tables)
    footprint = Footprint(
        part_bytes=sizes.part_bytes,
        substitute_bytes=sizes.substitute_bytes,
        shared_bytes=sizes.shared_bytes(dtype),
        kv_bytes_per_token=0,
        tile_bytes=TILE * ((states * shape.hidden_size + 2 * sizes.widest_outputs + beside) * dtype.itemsize + near),
        tile_logits_bytes=logits_bytes,
        choosing_bytes=choosing_bytes(shape.vocabulary) + (2 * logits_bytes if shape.changes_logits else 0),
        embedding_bytes=kept_bytes + rows_bytes,
        decoding_bytes=sizes.decoding_bytes,
        tokenizer_bytes=shape.vocabulary * TOKENIZER,
        linears=sizes.linears,
        spill=spill_sizes(shape, dtype, cores),
        state_line=shape.states * shape.hidden_size * dtype.itemsize,
    )
    return footprint.with_layers([layer_size(shape, index, dtype) for index in range(len(shape.layers))])


def on_device(
    footprint: Footprint, sizes: WeightSizes, shape: ModelShape, dtype: torch.dtype, device: Device
) -> Footprint:
    """The footprint of a model that drafts on a device: with all that is looked up by token, and the levels of a draft.

    Of a level's logits there are the products' sums, their total in the model's type (three times, where the model changes
    them), and the scores, each float32."""
    recurrent = [layer.recurrent for layer in shape.layers if layer.recurrent is not None]
    outputs = blocks_of(shape.vocabulary) * BLOCK
    logits_bytes = outputs * (4 + 4 + (3 if shape.changes_logits else 1) * dtype.itemsize)
    # of the matrices of experts that one node goes to
    routed = max((int(linear.blocks * linear.share) for linear in sizes.linears if linear.share < 1), default=0)
    node_bytes = footprint.tile_bytes // TILE + max(SPLITS, FEWEST_ROWS * routed) * BLOCK * 4 + logits_bytes
    levels = LevelSize(node_bytes, noise_bytes=shape.vocabulary * BYTES_A_TOKEN)
    if device.graphs is None:
        levels = replace(levels, recorded_bytes=0)
    table_bytes = sum(rows * width for rows, width in sizes.tables) * dtype.itemsize
    working = max(map(working_bytes, recurrent), default=0)
    return replace(footprint, embedding_bytes=table_bytes, levels=levels, working_bytes=working)

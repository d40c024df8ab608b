"""Decoder blocks of the draft view with fewer steps: a norm is part of the products after it, queries, keys and values are one run,
and so are both halves of a gated MLP; what is added back is added as outputs are written.

What has the usual structure (`block_structure`) is taken over, but only if it gives what the stock modules give: both run once, on
the same hidden states, when the model is loaded. That is a whole block, or its attention alone (that of a mixture of experts), or
else a gated MLP alone, wherever it stands. All the rest runs as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...cache import Cache
from ...kernels.blocks import BlockKernels, ChainedBlocks, JoinedProduct
from ...kernels.draft_chain import BlockParts
from ...kernels.head_form import HeadForm, Made
from ...layer_states import FullState
from ...small_keys import LINES, plain, size_in
from ...tree import Nodes
from ..streamed import CurrentPass, Pass
from .block_samples import MlpSample, Sample, given_beside, turns_of
from .block_structure import AttentionModules, BlockModules, MlpModules

# What stock blocks are handed as an earlier layer's keys and values: attention reads them from the cache.
IN_THE_CACHE = (torch.empty(1, 1, 0, 1), torch.empty(1, 1, 0, 1))
# of hidden states, keys and values
TYPES = (torch.bfloat16, torch.float32)
# by how much keys, values and what a half of a block adds to its input may differ from the stock block's: activations are rounded
# to int8 at other places
TOLERANCE = 0.1
# by how much a stock MLP may differ from what its modules give one by one, which round at the same places
ROUNDED_ALIKE = 0.02


class LevelPass(Protocol):
    """What a fused block asks of the level under way."""

    cache: Cache
    nodes: Nodes

    @property
    def tops(self) -> Sequence[tuple[int, int]]:
        """Rows and positions up to which recurrent layers must have folded their records."""

    @property
    def undivided(self) -> bool:
        """Do all layers see the same nodes, and does nobody look at what lies between them?"""

    def nodes_in(self, layer: int) -> Nodes:
        """Its nodes as they lie in fast memory in `layer`."""


class FirstHalf(Protocol):
    """The first half of a block: hidden states x [n, hidden size] -> x and what it adds to it."""

    @property
    def kernels(self) -> BlockKernels: ...

    @property
    def layer(self) -> int: ...

    def __call__(self, x: Tensor, turns: tuple[Tensor, Tensor], level: LevelPass) -> Tensor: ...

    def alike(self, sample: Sample, level: LevelPass) -> bool:
        """Whether it gives what the stock module gave, and keeps the same."""


@dataclass(frozen=True)
class FusedAttention:
    """The attention of a block: hidden states x [n, hidden size] -> x and what attention adds to it."""

    kernels: BlockKernels
    made: JoinedProduct
    heads: HeadForm
    output: JoinedProduct
    layer: int

    def __call__(self, x: Tensor, turns: tuple[Tensor, Tensor], level: LevelPass) -> Tensor:
        state = level.cache.layer(self.layer, self.heads.spec.window)
        attended = self.kernels.attend(self.made(x), (turns[0][0], turns[1][0]), state, level.nodes_in(self.layer), self.heads)
        return self.output(attended, x)

    def alike(self, sample: Sample, level: LevelPass) -> bool:
        """Whether it gives what the stock attention gave, and leaves the same keys and values in the cache. These stay as the stock
        attention left them."""
        state = level.cache.layer(self.layer, self.heads.spec.window)
        shape = level.cache.shapes[self.layer]
        usual = (shape.reads is None) == (self.heads.made is not Made.QUERIES) and not shape.chunk
        usual &= state.keys.dtype in (*TYPES, LINES)
        usual &= all(turn.shape[:-1] == sample.given.shape[:-1] for turn in sample.turns)
        if not usual or sample.turns[0].shape != sample.turns[1].shape or not self.fits(state, sample.turns[0].shape[-1]):
            return False
        return keeps_alike(self, sample, level, state)

    def fits(self, state: FullState, angles: int) -> bool:
        """Can the kernels attend so, and are products and norms as large as keys and values in `state` ask for, which are turned by
        so many angles?"""
        turned = self.heads.turned(angles)
        kv_heads, key, value = state.keys.shape[1], size_in(state.keys), size_in(state.values)
        heads = self.heads.heads(self.made.outputs, kv_heads, key, value)
        line = heads * (2 if self.heads.gated else 1) * key + kv_heads * self.heads.beside(key, value)
        apart = not self.heads.gated and self.heads.made is not Made.ONE_FOR_BOTH
        whole = self.made.outputs == line and heads * value == self.output.columns and (key == value or apart)
        norms = [norm.weight.numel() for norm in self.heads.norms or ()]
        normed = norms in ([], [key, key], [heads * key, kv_heads * key])
        shared = heads > 0 and heads % kv_heads == 0 and turned <= key and turned % 2 == 0
        return whole and normed and shared and self.kernels.attends(self.heads, key)


@dataclass(frozen=True)
class FusedMlp:
    """A gated MLP, with its norms and what is added to it or without: hidden states x [..., hidden size] -> the same shape."""

    gated: JoinedProduct
    down: JoinedProduct

    def __call__(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        return self.down(self.gated(x.reshape(-1, x.shape[-1])), added).reshape(x.shape)


@dataclass(frozen=True)
class FusedFurther:
    """The third part of a block: hidden states x [1, n, hidden size], and what the model has `beside` them for its layer
    [1, n, numbers] -> the same shape as x."""

    first: JoinedProduct
    act: Callable[[Tensor], Tensor]
    last: JoinedProduct

    def __call__(self, x: Tensor, beside: Tensor) -> Tensor:
        return self.last(self.act(self.first(x[0])) * beside[0], x[0])[None]


# See `FusedFurther`; or a stock one.
FurtherPart = Callable[[Tensor, Tensor], Tensor]


class FusedBlock:
    """One decoder block, for levels of the draft: hidden states [1, n, hidden size], and what its further part is given `beside`
    them -> the same shape."""

    def __init__(
        self, attention: FirstHalf, mlp: FusedMlp | None, further: FurtherPart | None, stock: BlockModules
    ) -> None:
        self.attention = attention
        # None: the second half runs as it is.
        self.mlp = mlp
        # None: there is none.
        self.further = further
        self.stock = stock
        # The blocks that run in one call, this among them; None: it runs alone.
        self.chain: BlockChain | None = None

    @property
    def layer(self) -> int:
        return self.attention.layer

    def __call__(self, hidden: Tensor, turns: tuple[Tensor, Tensor], level: LevelPass, beside: Tensor | None = None) -> Tensor:
        x = self.attention(hidden[0], turns, level)
        x = self.mlp(x, x)[None] if self.mlp is not None else second_half(self.stock, x[None])
        if self.further is None:
            return x
        assert beside is not None
        return self.further(x, beside)


def second_half(stock: BlockModules, x: Tensor) -> Tensor:
    """The second half of a stock block, whatever its MLP is, up to its further part: hidden states [1, n, hidden size] -> the same
    shape."""
    _, _, before, after = stock.norms
    made = stock.mlp(x if before is None else before(x))
    added: Tensor = made[0] if isinstance(made, tuple) else made
    added = added if stock.experts is None else stock.experts(x, added)
    added = added if after is None else after(added)
    x = x + (added if stock.times == 1 else added * stock.times)
    return x if stock.scale == 1 else x * stock.scale


class BlockChain:
    """Blocks that follow each other, where the model hands on what each gives as it is."""

    def __init__(self, blocks: Sequence[FusedBlock], windows: Sequence[int], run: ChainedBlocks) -> None:
        self.blocks = blocks
        # What each attends back to, see `AttentionSpec`.
        self.windows = windows
        self.run = run

    def __call__(self, hidden: Tensor, turns: tuple[Tensor, Tensor], level: LevelPass) -> Tensor:
        """What the last of them gives, of what the first is given."""
        states = [level.cache.layer(block.layer, window) for block, window in zip(self.blocks, self.windows, strict=True)]
        return self.run(hidden, (turns[0][0], turns[1][0]), states, level.nodes_in(self.blocks[0].layer))


def keeps_alike(ours: FirstHalf, sample: Sample, level: LevelPass, state: FullState) -> bool:
    """Whether `ours` gives what the stock attention gave, and leaves the same in `state`, where that stays as it was then."""
    places, row, given = state.places(level.nodes.slots), int(level.nodes.rows[0]), sample.given[0]
    stock = [slab[row, :, places].clone() for slab in (state.keys, state.values)]
    pairs = [(sample.middle[0] - given, ours(given, sample.turns, level) - given)]
    pairs += [(plain(old), plain(slab[row, :, places])) for old, slab in zip(stock, (state.keys, state.values), strict=True)]
    found = all(alike(old, new) for old, new in pairs)
    for old, slab in zip(stock, (state.keys, state.values), strict=True):
        slab[row, :, places] = old
    return found


def goes_on_alike(stock: BlockModules, sample: Sample) -> bool:
    """Whether what follows attention in a stock block is `second_half`, up to its further part."""
    base = sample.middle * stock.scale
    return alike(sample.ended - base, second_half(stock, sample.middle) - base)


def ends_alike(ours: FurtherPart, sample: Sample, scale: float) -> bool:
    """Whether `ours` gives what the further part of the stock block gave, times `scale`."""
    if sample.beside is None or sample.beside.shape[:-1] != sample.ended.shape[:-1]:
        return False
    base = sample.ended * scale
    return alike(sample.gave - base, ours(sample.ended, sample.beside) - base)


def computes_alike(ours: FusedMlp, sample: MlpSample, added: bool = False, scale: float = 1.0) -> bool:
    """Whether `ours` gives what the stock MLP gave. `added`: both add what they are given; then all is times `scale`."""
    given = sample.given
    base = given * scale if added else torch.zeros_like(given)
    flat = given.reshape(-1, given.shape[-1])
    return alike(sample.gave - base, ours(given, flat if added else None) - base)


def is_gated(parts: MlpModules, sample: MlpSample) -> bool:
    """Whether the stock MLP that gave `sample` is `parts` and nothing else. `computes_alike` could not tell a factor near 1 between
    them from rounding."""
    return alike(sample.gave, parts(sample.given), ROUNDED_ALIKE)


def alike(old: Tensor, new: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Whether `new` differs from `old` by no more than rounding makes it."""
    return bool((new.float() - old.float()).norm() <= tolerance * old.float().norm())


def chain_up(made: Mapping[nn.Module, FusedBlock], handed_on: set[tuple[nn.Module, nn.Module]]) -> None:
    """Let whole blocks of `made`, in the order of the model, run in one call as far as each is `handed_on` what the one before
    gave."""
    chains: list[list[tuple[FusedBlock, BlockParts[JoinedProduct]]]] = []
    last: nn.Module | None = None
    for block, ours in made.items():
        first, mlp = ours.attention, ours.mlp
        if mlp is None or not isinstance(first, FusedAttention) or ours.further is not None:
            last = None
            continue
        if last is None or (last, block) not in handed_on:
            chains.append([])
        chains[-1].append((ours, BlockParts(first.made, first.heads, first.output, mlp.gated, mlp.down)))
        last = block
    for chain in chains:
        blocks, parts = [ours for ours, _ in chain], [parts for _, parts in chain]
        run = blocks[0].attention.kernels.chain(parts) if len(blocks) > 1 else None
        if run is not None:
            together = BlockChain(blocks, [parts.heads.spec.window for parts in parts], run)
            for ours in blocks:
                ours.chain = together


def take_over(
    block: nn.Module, ours: FusedBlock, current: CurrentPass, level: Callable[[Pass | None], LevelPass | None]
) -> None:
    """Let `ours` run in the place of the stock `block` while a level is under way: `level` tells whether the pass is one."""
    stock = block.forward
    attention = ours.stock.attention
    shared_as = attention.shared_as if isinstance(attention, AttentionModules) else ""

    def forward(*given: Any, **named: Any) -> Any:
        under_way = level(current.under_way)
        if under_way is None or not ours.attention.kernels.suits(under_way.nodes_in(ours.layer)):
            return stock(*given, **named)
        hidden, turns = given[0] if given else named["hidden_states"], turns_of(named)
        assert turns is not None
        if shared_as:
            named["shared_kv_states"][shared_as] = IN_THE_CACHE
        if ours.chain is None or not under_way.undivided:
            return ours(hidden, turns, under_way, given_beside(given, named))
        # what all of the chain give is what the first gave
        return ours.chain(hidden, turns, under_way) if ours.chain.blocks[0] is ours else hidden

    object.__setattr__(block, "forward", forward)


def take_over_mlp(
    mlp: nn.Module, ours: FusedMlp, current: CurrentPass, level: Callable[[Pass | None], LevelPass | None]
) -> None:
    """The same for an MLP alone."""
    stock = mlp.forward

    def forward(x: Tensor, *given: Any, **named: Any) -> Any:
        return stock(x, *given, **named) if level(current.under_way) is None else ours(x)

    object.__setattr__(mlp, "forward", forward)

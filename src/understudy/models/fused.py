"""Decoder blocks of the draft view with fewer steps: a norm is part of the products after it, queries, keys and values are one run,
and so are both halves of a gated MLP; what is added back is added as outputs are written.

A block is taken over where its structure is the usual one, and only if it gives what the stock block gives: both run once, on the
same hidden states, when the model is loaded. All others run as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..cache import Cache
from ..kernels.attention import AttentionSpec
from ..kernels.blocks import BlockKernels, ChainedBlocks, JoinedProduct
from ..kernels.draft_chain import BlockParts
from ..kernels.draft_product import Norm
from ..small_keys import LINES, plain, size_in
from ..tree import Nodes
from .streamed import CurrentPass, Pass, StreamedLinear

# the parts of a block that can be taken over: names of its children, of its attention's and of its MLP's
PARTS = (
    {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"},
    {"q_proj", "k_proj", "v_proj", "o_proj"},
    {"gate_proj", "up_proj", "down_proj", "act_fn"},
)
# by how much keys, values and what a block adds to its input may differ from the stock block's: activations are rounded to int8 at
# other places
TOLERANCE = 0.1
# of hidden states, keys and values
TYPES = (torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Sample:
    """What a stock block was given in a level, and what it gave: hidden states [1, n, hidden size]."""

    given: Tensor
    gave: Tensor
    # cosines and sines [1, n, key size]
    turns: tuple[Tensor, Tensor]
    # its number, and how it attended
    layer: int
    spec: AttentionSpec


class LevelPass(Protocol):
    """What a fused block asks of the level under way."""

    cache: Cache
    nodes: Nodes

    @property
    def undivided(self) -> bool:
        """Do all layers see the same nodes, and does nobody look at what lies between them?"""

    def nodes_in(self, layer: int) -> Nodes:
        """Its nodes as they lie in fast memory in `layer`."""


class FusedBlock:
    """One decoder block, for levels of the draft: hidden states [1, n, hidden size] -> the same shape."""

    def __init__(
        self,
        kernels: BlockKernels,
        attention: tuple[JoinedProduct, JoinedProduct],
        mlp: tuple[JoinedProduct, JoinedProduct],
        layer: int,
        spec: AttentionSpec,
    ) -> None:
        self.kernels = kernels
        self.made, self.output = attention
        self.gated, self.down = mlp
        self.layer = layer
        self.spec = spec
        # The blocks that run in one call, this among them; None: it runs alone.
        self.chain: BlockChain | None = None

    @property
    def parts(self) -> BlockParts[JoinedProduct]:
        return BlockParts(self.made, self.spec, self.output, self.gated, self.down)

    def __call__(self, hidden: Tensor, turns: tuple[Tensor, Tensor], level: LevelPass) -> Tensor:
        x = hidden[0]
        state = level.cache.layer(self.layer, self.spec.window)
        attended = self.kernels.attend(self.made(x), (turns[0][0], turns[1][0]), state, level.nodes_in(self.layer), self.spec)
        x = self.output(attended, x)
        return self.down(self.gated(x), x)[None]


class BlockChain:
    """Blocks that follow each other, where the model hands on what each gives as it is."""

    def __init__(self, blocks: Sequence[FusedBlock], run: ChainedBlocks) -> None:
        self.blocks = blocks
        self.run = run

    def __call__(self, hidden: Tensor, turns: tuple[Tensor, Tensor], level: LevelPass) -> Tensor:
        """What the last of them gives, of what the first is given."""
        states = [level.cache.layer(block.layer, block.spec.window) for block in self.blocks]
        return self.run(hidden, (turns[0][0], turns[1][0]), states, level.nodes_in(self.blocks[0].layer))


class BlockSamples:
    """Inside, levels leave `specs` by layer, and the stock `blocks` what they were given and gave."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self.blocks = blocks
        self.specs: dict[int, AttentionSpec] = {}
        self._seen: list[tuple[nn.Module, Tensor, Tensor, tuple[Tensor, Tensor]]] = []
        # What each of those gave, as it was then.
        self._then: list[Tensor] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> BlockSamples:
        self._hooks = [block.register_forward_hook(self._keep, with_kwargs=True) for block in self.blocks]
        return self

    def __exit__(self, *failure: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _keep(self, block: nn.Module, given: tuple[Any, ...], named: dict[str, Any], gave: Any) -> None:
        hidden = given[0] if given else named.get("hidden_states")
        turns = named.get("position_embeddings")
        if isinstance(gave, Tensor) and isinstance(hidden, Tensor) and isinstance(turns, tuple) and len(turns) == 2:
            self._seen.append((block, hidden, gave, turns))
            self._then.append(gave.clone())

    @property
    def handed_on(self) -> set[tuple[nn.Module, nn.Module]]:
        """Pairs of blocks of which the second was given just what the first had given, and the same turns."""
        pairs = list(zip(self._seen, self._seen[1:], self._then, strict=False))
        return {
            (first, second)
            for (first, _, gave, turns), (second, given, _, others), then in pairs
            if given is gave and torch.equal(given, then) and all(a is b for a, b in zip(turns, others, strict=True))
        }

    @property
    def samples(self) -> list[tuple[nn.Module, Sample]]:
        """Each block that can be compared, with what it was given and gave."""
        layers = [int(getattr(block.self_attn, "layer_idx", -1)) for block, *_ in self._seen]
        return [
            (block, Sample(given, gave, turns, layer, self.specs[layer]))
            for layer, (block, given, gave, turns) in zip(layers, self._seen, strict=True)
            if layer in self.specs
        ]


def usual_blocks(model: nn.Module) -> list[nn.Module]:
    """The decoder blocks of `model` whose children have the usual names, and no others."""
    return [module for module in model.modules() if _usual(module)]


def _usual(block: nn.Module) -> bool:
    parts = (block, getattr(block, "self_attn", None), getattr(block, "mlp", None))
    for part, names in zip(parts, PARTS, strict=True):
        if not isinstance(part, nn.Module) or {name for name, _ in part.named_children()} != names:
            return False
    return True


def fused(
    block: nn.Module, linears: Mapping[int, Callable[[Tensor], Tensor]], sample: Sample, kernels: BlockKernels
) -> FusedBlock | None:
    """The usual stock decoder `block`, which gave `sample`, as one of ours; None where a part of it is not as usual. Whether it
    computes the same is not known yet. `linears`: the draft's product of each Linear, by its index."""
    joiner = Joiner(linears, kernels)
    attention: Any = block.self_attn
    mlp: Any = block.mlp
    before, after = (_norm(getattr(block, name)) for name in ("input_layernorm", "post_attention_layernorm"))
    usual = not sample.spec.softcap and sample.spec.sinks is None and sample.given.dtype in TYPES
    if before is None or after is None or not usual or not _is_silu(mlp.act_fn):
        return None
    made = joiner([attention.q_proj, attention.k_proj, attention.v_proj], before)
    output, down = joiner([attention.o_proj]), joiner([mlp.down_proj])
    gated = joiner([mlp.gate_proj, mlp.up_proj], after, gated=True)
    if made is None or output is None or gated is None or down is None:
        return None
    return FusedBlock(kernels, (made, output), (gated, down), sample.layer, sample.spec)


@dataclass(frozen=True)
class Joiner:
    """Joins the draft's products of several Linears of one input."""

    # the draft's product of each Linear, by its index
    linears: Mapping[int, Callable[[Tensor], Tensor]]
    kernels: BlockKernels

    def __call__(self, modules: Sequence[nn.Module], norm: Norm | None = None, gated: bool = False) -> JoinedProduct | None:
        """None where they cannot be joined."""
        products: list[Callable[[Tensor], Tensor]] = []
        biases: list[Tensor | None] = []
        for module in modules:
            if not isinstance(module, StreamedLinear):
                return None
            products.append(self.linears[module.index])
            biases.append(None if module.bias is None else module.get_parameter("bias"))
        return self.kernels.join(products, norm, biases, gated)


def chain_up(made: Mapping[nn.Module, FusedBlock], handed_on: set[tuple[nn.Module, nn.Module]]) -> None:
    """Let blocks of `made`, in the order of the model, run in one call as far as each is `handed_on` what the one before gave."""
    chains: list[list[FusedBlock]] = []
    last: nn.Module | None = None
    for block, ours in made.items():
        if last is None or (last, block) not in handed_on:
            chains.append([])
        chains[-1].append(ours)
        last = block
    for blocks in chains:
        run = blocks[0].kernels.chain([ours.parts for ours in blocks]) if len(blocks) > 1 else None
        if run is not None:
            whole = BlockChain(blocks, run)
            for ours in blocks:
                ours.chain = whole


def agrees(block: FusedBlock, sample: Sample, level: LevelPass) -> bool:
    """Whether `block` gives what the stock block gave, and leaves the same keys and values in the cache."""
    state, row = level.cache.layer(block.layer, block.spec.window), int(level.nodes.rows[0])
    usual = level.cache.shapes[block.layer].reads is None and state.keys.dtype in (*TYPES, LINES)
    if not usual or any(turn.shape[-1] != size_in(state.keys) for turn in sample.turns):
        return False
    places = state.places(level.nodes.slots)
    kept = [plain(slab[row, :, places]).float() for slab in (state.keys, state.values)]
    added = (sample.gave - sample.given).float()
    pairs = [(added, block(sample.given, sample.turns, level).float() - sample.given.float())]
    pairs += [(old, plain(slab[row, :, places]).float()) for old, slab in zip(kept, (state.keys, state.values), strict=True)]
    return all(bool((new - old).norm() <= TOLERANCE * old.norm()) for old, new in pairs)


def take_over(
    block: nn.Module, ours: FusedBlock, current: CurrentPass, level: Callable[[Pass | None], LevelPass | None]
) -> None:
    """Let `ours` run in the place of the stock `block` while a level is under way: `level` tells whether the pass is one."""
    stock = block.forward

    def forward(*given: Any, **named: Any) -> Any:
        under_way = level(current.under_way)
        if under_way is None or not ours.kernels.suits(under_way.nodes_in(ours.layer)):
            return stock(*given, **named)
        hidden, turns = given[0] if given else named["hidden_states"], named["position_embeddings"]
        if ours.chain is None or not under_way.undivided:
            return ours(hidden, turns, under_way)
        # what all of the chain give is what the first gave
        return ours.chain(hidden, turns, under_way) if ours.chain.blocks[0] is ours else hidden

    object.__setattr__(block, "forward", forward)


def _norm(module: nn.Module) -> Norm | None:
    """What a norm does, if it is a root mean square norm; its weight, of whatever convention, is found by what it makes of ones."""
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    weight = getattr(module, "weight", None)
    if not isinstance(epsilon, float) or not isinstance(weight, Tensor):
        return None
    ones = module(torch.ones_like(weight)[None])[0]
    return Norm(ones.float().contiguous() * (1 + epsilon) ** 0.5, epsilon)


def _is_silu(act: Callable[[Tensor], Tensor]) -> bool:
    x = torch.linspace(-8, 8, 65)
    return torch.allclose(act(x), nn.functional.silu(x))

"""What the stock decoder blocks of transformers are made of, told from the names of their children."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...kernels.head_form import Made
from ..recurrent_layers.mixer import Mixer
from ..stock.latent import HEADS, LatentHeads

# By the names of a block's norms: those before and after its attention, then before and after its MLP; "": there is none.
NORMS = {
    frozenset(names) - {""}: names
    for names in (
        ("input_layernorm", "", "post_attention_layernorm", ""),
        ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
        ("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"),
        ("input_layernorm", "", "pre_feedforward_layernorm", ""),
        ("", "post_attention_layernorm", "", "post_feedforward_layernorm"),
    )
}
# The Linears of a gated MLP: those that its input goes through, and the one after them.
GATED = ((("gate_proj", "up_proj"), "down_proj"), (("gate_up_proj",), "down_proj"), (("w1", "w3"), "w2"))
ACTIVATIONS = ("act_fn", "activation_fn")
# The Linears before attention, and what they make of a node.
MADE = {
    ("q_proj", "k_proj", "v_proj"): Made.ALL,
    ("qkv_proj",): Made.ALL,
    ("q_proj", "k_proj"): Made.ONE_FOR_BOTH,
    ("q_proj",): Made.QUERIES,
}
# of queries, of keys, and of values
HEAD_NORMS = ("q_norm", "k_norm", "v_norm")
OUTPUT = "o_proj"
# The Linears of attention by a latent state, with the norm between two: of queries (or one alone), and of keys and values.
LATENT_QUERIES = ("q_a_proj", "q_a_layernorm", "q_b_proj")
LATENT = ("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", OUTPUT)
# A mixture of experts beside an MLP (`ExpertsBeside`).
BESIDE = (
    *("router", "experts", "post_feedforward_layernorm_1"),
    *("pre_feedforward_layernorm_2", "post_feedforward_layernorm_2"),
)
# What further part a block may end with (`FurtherModules`): the Linear before its gate, that after it, and the norm of the result.
FURTHER = ("per_layer_input_gate", "per_layer_projection", "post_per_layer_input_norm")


@dataclass(frozen=True)
class AttentionModules:
    """Of a block's attention: the Linears of queries, keys and values (or one for all), and the Linear of the output."""

    linears: tuple[nn.Module, ...]
    made: Made
    # Of queries, keys and values; None: there is none.
    norms: tuple[nn.Module | None, nn.Module | None, nn.Module | None]
    output: nn.Module
    layer: int
    # Under which name other layers are handed its keys and values; "": they are not.
    shared_as: str = ""


@dataclass(frozen=True)
class LatentModules:
    """Of a block's attention whose keys and values come of a latent state: the Linears of its input, the norm and the Linear after
    that of queries (None: there is one Linear alone), those after the latent state, and the Linear of the output."""

    linears: tuple[nn.Module, nn.Module]
    queries: tuple[nn.Module, nn.Module] | None
    widened: tuple[nn.Module, nn.Module]
    output: nn.Module
    # as many of queries as of keys and of values
    heads: int
    # Numbers of a query or a key that are turned by position, the last ones, and of a value.
    turned: int
    value_size: int
    layer: int
    # How it attends over states that are kept in the place of keys and values; None: it does not.
    states: LatentHeads | None = None


@dataclass(frozen=True)
class MlpModules:
    """Of a gated MLP: the Linears of both halves (or one for both), and the one after them. `act`: of the first half; None: the MLP
    names none."""

    gated: tuple[nn.Module, ...]
    down: nn.Module
    act: Callable[[Tensor], Tensor] | None

    def __call__(self, x: Tensor) -> Tensor:
        """What a gated MLP of these modules, and of nothing else, makes of x [..., hidden size]."""
        first, second = [each(x) for each in self.gated] if len(self.gated) > 1 else self.gated[0](x).chunk(2, -1)
        made: Tensor = self.down((self.act or nn.functional.silu)(first) * second)
        return made


@dataclass(frozen=True)
class ExpertsBeside:
    """A mixture of experts beside an MLP: after_mlp(mlp(before(x))) + after(experts(own(x), router(x)))."""

    router: nn.Module
    experts: nn.Module
    after_mlp: nn.Module
    own: nn.Module
    after: nn.Module

    def __call__(self, x: Tensor, made: Tensor) -> Tensor:
        """x [1, n, hidden size], and what the MLP made of it -> what both add."""
        flat = x.reshape(-1, x.shape[-1])
        _, weights, chosen = self.router(flat)
        mixed = self.experts(self.own(flat), chosen, weights).reshape(x.shape)
        both: Tensor = self.after_mlp(made) + self.after(mixed)
        return both


@dataclass(frozen=True)
class FurtherModules:
    """A third part of a block: (x + after(last(act(first(x)) * beside))) * scale, where `beside` is what the model has for the
    layer."""

    first: nn.Module
    last: nn.Module
    after: nn.Module
    act: Callable[[Tensor], Tensor]
    scale: float

    def __call__(self, x: Tensor, beside: Tensor) -> Tensor:
        """x [1, n, hidden size], beside [1, n, numbers] -> as x."""
        added: Tensor = self.after(self.last(self.act(self.first(x)) * beside))
        return (x + added) * self.scale


@dataclass(frozen=True)
class BlockModules:
    """x + after(attention(before(x))) twice, the second time with the MLP in the place of attention, and `experts` beside it; then
    the `further` part. `norms`: before and after each. What is None is not there."""

    # A mixer: the layer is recurrent.
    attention: AttentionModules | LatentModules | Mixer
    mlp: nn.Module
    norms: tuple[nn.Module | None, nn.Module | None, nn.Module | None, nn.Module | None]
    # factor of what is added to x, and of all in the end, unless that is the further part's
    times: float
    scale: float = 1.0
    experts: ExpertsBeside | None = None
    further: FurtherModules | None = None

    @property
    def layer(self) -> int:
        """Its number."""
        return self.attention.layer_idx if isinstance(self.attention, Mixer) else self.attention.layer

    @property
    def second(self) -> nn.Module:
        """The first module that sees what attention has given."""
        return self.norms[2] or self.mlp


def block_modules(block: nn.Module) -> BlockModules | None:
    """The parts of a block whose children have names as they usually are; None: they have not. What the MLP is does not matter."""
    children = {name: child for name, child in block.named_children() if not isinstance(child, (nn.Dropout, nn.Identity))}
    further = further_modules(block)
    experts = ExpertsBeside(*map(children.__getitem__, BESIDE)) if children.keys() >= set(BESIDE) else None
    for name in (*(FURTHER + ACTIVATIONS if further else ()), *(BESIDE if experts else ())):
        children.pop(name, None)
    order = NORMS.get(frozenset(name for name in children if name.endswith("norm")))
    mixer = children.get("linear_attn")
    own = children.get("self_attn")
    attention = mixer if isinstance(mixer, Mixer) else attention_modules(own) or latent_modules(own)
    rest = [child for name, child in children.items() if not name.endswith("norm") and name not in ("self_attn", "linear_attn")]
    if order is None or attention is None or len(rest) != 1:
        return None
    before, after, second, last = (children.get(name) for name in order)
    times, scale = float(getattr(block, "residual_multiplier", 1.0)), 1.0 if further else _scale(block)
    return BlockModules(attention, rest[0], (before, after, second, last), times, scale, experts, further)


def _scale(block: nn.Module) -> float:
    return float(getattr(block, "layer_scalar", 1.0))


def further_modules(block: nn.Module) -> FurtherModules | None:
    """None where it has no third part, or one of other children."""
    children, act = dict(block.named_children()), getattr(block, "act_fn", None)
    if act is None or not children.keys() >= set(FURTHER):
        return None
    first, last, after = map(children.__getitem__, FURTHER)
    return FurtherModules(first, last, after, act, _scale(block))


def attention_modules(attention: nn.Module | None) -> AttentionModules | None:
    """None where it has other children."""
    children: dict[str, nn.Module] = {} if attention is None else dict(attention.named_children())
    layer: Any = getattr(attention, "layer_idx", None)
    query, key, value = (children.pop(name, None) for name in HEAD_NORMS)
    for names, made in MADE.items():
        # Norms are of both that are multiplied, if both are made here.
        even = key is value is None if made is Made.QUERIES else (query is None) == (key is None)
        if children.keys() == {*names, OUTPUT} and even and layer is not None:
            shared = str(getattr(attention, "layer_type", "")) if getattr(attention, "store_full_length_kv", False) else ""
            linears = tuple(children[name] for name in names)
            return AttentionModules(linears, made, (query, key, value), children[OUTPUT], int(layer), shared)
    return None


def latent_modules(attention: nn.Module | None) -> LatentModules | None:
    """None where it has other children, or looks at what an index chooses: its own, or that of a layer before it."""
    if hasattr(attention, "indexer"):
        return None
    children: dict[str, nn.Module] = {} if attention is None else dict(attention.named_children())
    named = (getattr(attention, name, None) for name in ("num_heads", "qk_rope_head_dim", "v_head_dim", "layer_idx"))
    sizes = [size for size in named if isinstance(size, int)]
    if len(sizes) < 4 or children.keys() - {"q_proj", *LATENT_QUERIES} != set(LATENT):
        return None
    down, norm, up, output = map(children.__getitem__, LATENT)
    heads, turned, value_size, layer = sizes
    rest = output, heads, turned, value_size, layer, getattr(attention, HEADS, None)
    several: list[nn.Module | None] = [children.get(name) for name in ("q_proj", *LATENT_QUERIES)]
    match several:
        case [nn.Module() as alone, None, None, None]:
            return LatentModules((alone, down), None, (norm, up), *rest)
        case [None, nn.Module() as first, nn.Module() as between, nn.Module() as last]:
            return LatentModules((first, down), (between, last), (norm, up), *rest)
    return None


def mlp_modules(mlp: nn.Module) -> MlpModules | None:
    """None where it has other children than a gated MLP."""
    children = dict(mlp.named_children())
    act = next((getattr(mlp, name) for name in ACTIVATIONS if hasattr(mlp, name)), None)
    for gated, down in GATED:
        if children.keys() - set(ACTIVATIONS) == {*gated, down}:
            return MlpModules(tuple(children[name] for name in gated), children[down], act)
    return None


def usual_blocks(model: nn.Module) -> dict[nn.Module, BlockModules]:
    """The decoder blocks of `model` whose children have the usual names, and no others, in their order."""
    found = ((module, block_modules(module)) for module in model.modules())
    return {block: parts for block, parts in found if parts is not None}


def usual_mlps(model: nn.Module) -> dict[nn.Module, MlpModules]:
    """The same for gated MLPs, wherever they stand."""
    found = ((module, mlp_modules(module)) for module in model.modules())
    return {mlp: parts for mlp, parts in found if parts is not None}

"""What the stock decoder blocks of transformers are made of, told from the names of their children."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .mixer import Mixer

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
MADE = (("q_proj", "k_proj", "v_proj"), ("qkv_proj",))
# of queries and of keys
HEAD_NORMS = ("q_norm", "k_norm")
OUTPUT = "o_proj"


@dataclass(frozen=True)
class AttentionModules:
    """Of a block's attention: the Linears of queries, keys and values (or one for all), norms of queries and keys, and the Linear
    of the output."""

    made: tuple[nn.Module, ...]
    norms: tuple[nn.Module, nn.Module] | None
    output: nn.Module
    layer: int


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
class BlockModules:
    """x + after(attention(before(x))) twice, the second time with the MLP in the place of attention. `norms`: before and after
    each; None: there is none."""

    # A mixer: the layer is recurrent.
    attention: AttentionModules | Mixer
    mlp: nn.Module
    norms: tuple[nn.Module | None, nn.Module | None, nn.Module | None, nn.Module | None]
    # factor of what is added to x
    times: float

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
    order = NORMS.get(frozenset(name for name in children if name.endswith("norm")))
    mixer = children.get("linear_attn")
    attention = mixer if isinstance(mixer, Mixer) else attention_modules(children.get("self_attn"))
    rest = [child for name, child in children.items() if not name.endswith("norm") and name not in ("self_attn", "linear_attn")]
    if order is None or attention is None or len(rest) != 1:
        return None
    before, after, second, last = (children.get(name) for name in order)
    times = getattr(block, "residual_multiplier", 1.0)
    return BlockModules(attention, rest[0], (before, after, second, last), float(times))


def attention_modules(attention: nn.Module | None) -> AttentionModules | None:
    """None where it has other children."""
    children: dict[str, nn.Module] = {} if attention is None else dict(attention.named_children())
    layer: Any = getattr(attention, "layer_idx", None)
    norms = children.keys() & set(HEAD_NORMS)
    for made in MADE:
        if children.keys() - norms == {*made, OUTPUT} and len(norms) in (0, 2) and layer is not None:
            both = (children[HEAD_NORMS[0]], children[HEAD_NORMS[1]]) if norms else None
            return AttentionModules(tuple(children[name] for name in made), both, children[OUTPUT], int(layer))
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

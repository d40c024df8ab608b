"""Layers of the delta rule that forget by channel (KDA) in fewer steps, for levels of the draft: their products of one input are
one run, and what makes queries, keys and values of it is one call, as is what follows the rule. Taken over where that gives the
same, whatever stands around them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from torch import Tensor, nn

from ...kernels.blocks import ChannelParts, JoinedProduct
from ...kernels.draft_channels import ChannelForm
from ...kernels.join_form import PLAIN, Norm
from ...kernels.recurrence import RuleStep
from ..recurrent_layers import channel_steps
from ..recurrent_layers.channel_delta import ChannelDelta
from ..streamed import CurrentPass, Pass, StreamedLinear
from .fused import TYPES, LevelPass, alike
from .fused_delta import products_of
from .joiner import Joiner, epsilon_of

# What stock layers were given in a level, and gave: [1, n, hidden size].
ChannelSamples = dict[nn.Module, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class MadeColumns:
    """Some columns of what the products of a layer's input make, and a further product of them."""

    columns: slice
    # None: they are what is wanted
    further: JoinedProduct | None

    def __call__(self, made: Tensor) -> Tensor:
        """made [n, columns] -> [n, heads * size]."""
        found = made[:, self.columns]
        return found if self.further is None else self.further(found)


@dataclass(frozen=True)
class Forgetting:
    """How decays come of what the products make."""

    # float32 [heads, 1] and [heads, size]
    rates: Tensor
    shifts: Tensor
    # of their logarithms; None: there is none
    bound: float | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """x [n, heads * size] -> decays [n, heads, size] float32."""
        x = x.view(-1, *self.shifts.shape).float().add(self.shifts)
        if self.bound is not None:
            return x.mul_(self.rates).sigmoid_().mul_(self.bound).exp_()
        return nn.functional.softplus(x).mul_(-self.rates).exp_()


@dataclass(frozen=True)
class FusedChannels:
    """A layer beside its norm: hidden states [1, n, hidden size] -> what it adds to them."""

    parts: ChannelParts
    made: JoinedProduct
    decays: MadeColumns
    gates: MadeColumns
    forgetting: Forgetting
    form: ChannelForm
    output: JoinedProduct
    layer: int

    def __call__(self, hidden: Tensor, level: LevelPass) -> Tensor:
        state, nodes = level.cache.advanced(self.layer, level.tops), level.nodes_in(self.layer)
        made = self.made(hidden[0])
        query, key, value, beta = self.parts.ask(made, state, nodes, self.form)
        step = RuleStep(query, key, value, self.forgetting(self.decays(made)), beta)
        given = channel_steps.recur(step, state, nodes)
        return self.output(self.parts.gate(given, self.gates(made), self.form.norm))[None]

    def alike(self, given: Tensor, gave: Tensor, level: LevelPass) -> bool:
        """Whether it makes of `given` what the stock layer `gave`."""
        state = level.cache.recurrent[self.layer]
        if given.dtype not in TYPES or state.inputs.dtype != given.dtype or not self.form.suits(state, self.made.outputs):
            return False
        return alike(gave, self(given, level))


def channel_layers(model: nn.Module, joiner: Joiner) -> dict[nn.Module, list[FusedChannels]]:
    """The layers of `model` that may run in fewer steps, and the ways to compute their decays."""
    parts = joiner.kernels.channels
    if parts is None:
        return {}
    found = {module: _ways(module, parts, joiner) for module in model.modules() if isinstance(module, ChannelDelta)}
    return {module: ways for module, ways in found.items() if ways}


def _ways(mixer: ChannelDelta, parts: ChannelParts, joiner: Joiner) -> list[FusedChannels]:
    """Empty where a part of the layer is not as usual."""
    forget, norm = mixer.forget_gate, mixer.o_norm
    forgets, opens = _one_or_two(forget, "f"), _one_or_two(mixer, "g")
    epsilon, weight = epsilon_of(norm), getattr(norm, "weight", None)
    if not forgets or not opens or mixer.conv1d.bias is not None or epsilon is None or not isinstance(weight, Tensor):
        return []
    linears = [mixer.q_proj, mixer.k_proj, mixer.v_proj, forgets[0], opens[0], mixer.b_proj]
    made, output = joiner.kernels.join(products_of(linears, joiner), PLAIN), joiner([mixer.o_proj])
    ends = list(accumulate(map(_outputs, linears)))
    decays, gates = _part(ends[2:4], forgets[1:], joiner), _part(ends[3:5], opens[1:], joiner)
    if made is None or output is None or decays is None or gates is None:
        return []
    rates = forget.A_log.detach().float().exp().reshape(-1, 1)
    forgetting = Forgetting(rates, forget.dt_bias.detach().float().reshape(len(rates), -1).contiguous())
    taps = mixer.conv1d.weight.detach()[:, 0].float().t().contiguous()
    form = ChannelForm(taps, ends[4], Norm(weight.detach().float().contiguous(), epsilon))
    plain = FusedChannels(parts, made, decays, gates, forgetting, form, output, mixer.layer_idx)
    bound = getattr(forget, "lower_bound", None)
    return [plain] if bound is None else [plain, replace(plain, forgetting=replace(forgetting, bound=float(bound)))]


def _one_or_two(module: nn.Module, name: str) -> list[nn.Module]:
    """The Linears that a gate is made by, one or two after each other; empty where there are others, or biases."""
    for names in ((f"{name}_proj",), (f"{name}_a_proj", f"{name}_b_proj")):
        found = [getattr(module, each, None) for each in names]
        linears = [each for each in found if isinstance(each, nn.Module) and getattr(each, "bias", None) is None]
        if len(linears) == len(names):
            return linears
    return []


def _outputs(linear: nn.Module) -> int:
    return linear.outputs if isinstance(linear, StreamedLinear) else len(linear.get_parameter("weight"))


def _part(ends: Sequence[int], further: Sequence[nn.Module], joiner: Joiner) -> MadeColumns | None:
    """The columns between `ends`, and the product by a `further` Linear, if there is one; None where that is not to be had."""
    product = joiner.kernels.join(products_of(further, joiner), PLAIN) if further else None
    return MadeColumns(slice(*ends), product) if (product is None) == (not further) else None


@contextmanager
def channel_samples(modules: Iterable[nn.Module]) -> Iterator[ChannelSamples]:
    """Inside, layers leave what they are given and give."""
    found: ChannelSamples = {}

    def keep(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], gave: Tensor) -> None:
        found[module] = (given[0] if given else named["hidden_states"]).clone(), gave.clone()

    hooks = [module.register_forward_hook(keep, with_kwargs=True) for module in modules]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def take_over_channels(
    mixer: nn.Module, ours: FusedChannels, current: CurrentPass, level: Callable[[Pass | None], LevelPass | None]
) -> None:
    """Let `ours` run in the place of the layer `mixer` while a level is under way: `level` tells whether the pass is one."""
    stock = mixer.forward

    def forward(hidden_states: Tensor, **named: Any) -> Any:
        under_way = level(current.under_way)
        return stock(hidden_states, **named) if under_way is None else ours(hidden_states, under_way)

    object.__setattr__(mixer, "forward", forward)

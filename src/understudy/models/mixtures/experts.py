"""Mixtures of experts: their stock modules hand their rows to the pass under way, which multiplies by what has been chosen.

transformers keeps the matrices of all experts of a layer in two parameters [experts, out, in] of one module, and lets a function
that is registered by name multiply by them. Ours asks the pass for both products. What each expert gives a node is added up in
float32, in the order of the experts' numbers, and rounded once: so a node's bits depend on no other node and on no order in which
weights come. Routers, shared experts and all else around are the stock model's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...errors import CheckpointError
from ...kernels import team
from ...kernels.expert_kernels import ExpertKernels
from ..stock.bare import STACKED
from .routed import Routed

if TYPE_CHECKING:
    from ..streamed import CurrentPass

# What such parameters are called in all families: the first of two, or both that it may be apart, and the last.
BOTH, GATE, UP, DOWN = "gate_up_proj", "gate_proj", "up_proj", "down_proj"
# The norm behind each expert, where there is one, and rows that go through it together.
NORM, TOGETHER = "post_expert_norm", 32
# Ends the names of their biases [experts, out].
BIAS = "_bias"
# What a module of experts says of those of its stacks that alone are [experts, in, out].
TURNED = "turned_stacks"
# Where a module of experts names its stacks, which are others than those of most.
STACKS = "own_stacks"
# The products of routed rows with the matrices of a stack, which is told by its name.
Multiply = Callable[[str, Routed], Tensor]


@dataclass(frozen=True)
class Stack:
    """One matrix of each expert of a layer, as a parameter [experts, out, in]."""

    module: nn.Module
    # of the parameter in its module
    name: str
    experts: int
    outputs: int
    inputs: int
    # Is the parameter [experts, in, out]?
    turned: bool

    @property
    def parameter(self) -> nn.Parameter:
        """All of its matrices."""
        parameter = self.module._parameters[self.name]
        assert parameter is not None
        return parameter

    @property
    def shape(self) -> tuple[int, int]:
        """[out, in] of all matrices, one below the other."""
        return self.experts * self.outputs, self.inputs


@cache
def experts_name() -> str:
    """The name under which stock models find `mix`; registered with transformers at the first call."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register("understudy", mix)
    return "understudy"


def norms(module: Any) -> bool:
    """Is there a norm behind each of these experts? Transformers before 5.23 knows of none."""
    return bool(getattr(module, "has_post_expert_norm", False))


def mixes(module: nn.Module) -> bool:
    """Does `module` hold the experts of a layer, as transformers' decorator marks such modules?"""
    return hasattr(module, "is_concatenated") and hasattr(module, "is_transposed") and hasattr(module, "_apply_gate")


def stacks(model: nn.Module) -> dict[str, Stack]:
    """The stacks of all layers of `model` by the names of their parameters, in the order of definition.

    Raises CheckpointError for modules of experts that compute in a way which is not supported."""
    found: dict[str, Stack] = {}
    for path, module in model.named_modules():
        if mixes(module):
            _refuse_odd(path, module)
            # in the order of use
            named: Any = module
            for name in stacked(named):
                turned = bool(named.is_transposed) or name in getattr(named, TURNED, ())
                experts, *sizes = module.get_parameter(name).shape
                outputs, inputs = sizes[::-1] if turned else sizes
                found[f"{path}.{name}"] = Stack(module, name, experts, outputs, inputs, turned)
    return found


def stacked(module: Any) -> tuple[str, ...]:
    """The names of the stacks of a module of experts, in the order of use."""
    named: tuple[str, ...] | None = getattr(module, STACKS, None)
    return named or (BOTH if module.has_gate else UP, DOWN)


def _refuse_odd(path: str, module: Any) -> None:
    """Raise CheckpointError for the experts `module` if `mix` would not compute what its class does."""
    why = None if not norms(module) or hasattr(module, NORM) else "has a norm behind each that is not found"
    biases = [name + BIAS for name in stacked(module)] if module.has_bias else []
    dimensions = dict.fromkeys(stacked(module), STACKED) | dict.fromkeys(biases, STACKED - 1)
    named = {name: p.dim() for name, p in module.named_parameters(recurse=False)}
    if why is None and named != dimensions:
        why = f"keeps {', '.join(sorted(named))}"
    if why is not None:
        raise CheckpointError(f"{path} ({type(module).__name__}) holds experts in a way that is not supported yet: it {why}.")


def hand_over(module: nn.Module, current: CurrentPass, name: str, index: int) -> None:
    """Take the parameter `name` away from a module of experts: it is streamed Linear `index` of the passes that `current` tells."""
    parameter = module._parameters[name]
    assert parameter is not None
    module._parameters[name] = None
    object.__setattr__(module, "understudy_experts", len(parameter))
    numbers = {**getattr(module, "understudy_numbers", {}), name: index}
    object.__setattr__(module, "understudy_numbers", numbers)
    object.__setattr__(module, "understudy", current)


def mix(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Function of experts as transformers calls it: hidden_states [n, H], the experts [n, k] that each row goes to, and how much
    each of them counts -> [n, H]."""
    if hidden_states.is_meta:
        return without_numbers(module, hidden_states, top_k_index)
    under_way, numbers = module.understudy.under_way, module.understudy_numbers
    assert under_way is not None, "a streamed model runs only through its target or draft view"
    count, chosen = under_way.count, top_k_index[: under_way.count]
    hidden, weights = hidden_states[:count], top_k_weights[:count]

    def multiply(name: str, routed: Routed) -> Tensor:
        product: Tensor = under_way.linear(numbers[name], routed)
        return product

    if (kernels := under_way.expert_kernels) is not None:
        return by_kernels(kernels, module, hidden, (chosen, weights), len(hidden_states), multiply)
    routed, order, places = Routed.of(hidden, chosen, module.understudy_experts)
    return _added(given(module, routed, multiply), weights.reshape(-1)[order], places, hidden_states)


def by_kernels(
    kernels: ExpertKernels, module: Any, hidden: Tensor, routes: tuple[Tensor, Tensor], height: int, multiply: Multiply
) -> Tensor:
    """What experts give where a device finds the rows of each: hidden [n, H], whose `routes` are the experts [n, k] of each row and
    their weights [n, k], -> [height, H]. The host is asked for nothing."""
    there = kernels.places(routes[0], module.understudy_experts)
    out = given(module, Routed(hidden.index_select(0, there.nodes), there.experts, there.starts), multiply)
    return kernels.add(out, there, routes[1], height, hidden.dtype)


def without_numbers(module: Any, hidden_states: Tensor, top_k_index: Tensor) -> Tensor:
    """What a pass without numbers is given for rows [n, H] that go to the experts [n, k]: whoever is `watching` is told of it."""
    if (seen := getattr(module, "seen", None)) is not None:
        seen(module, top_k_index.shape[-1])
    return torch.empty_like(hidden_states)


def given(module: Any, routed: Routed, multiply: Multiply) -> Tensor:
    """What the experts of `module` make of routed rows [m, H], each by itself; `multiply` gives their products with the matrices of
    a stack, which it is told by name."""
    *ups, down = stacked(module)
    made = [_biased(multiply(up, routed), module, up, routed) for up in ups]
    # On one thread: where the share of a thread ends in less than a vector, bits may be others, and that depends on all rows.
    with team.stock_alone():
        if len(made) > 1:
            inner = module.act_fn(made[0]) * made[1]
        else:
            inner = module._apply_gate(made[0]) if module.has_gate else module.act_fn(made[0])
    out = _biased(multiply(down, routed.with_rows(inner)), module, down, routed)
    return _normed(module, out) if norms(module) else out


def _normed(module: Any, out: Tensor) -> Tensor:
    """What experts gave routed rows, through the norm behind each. The host gives it so many rows at a time, the last of them
    padding: how many there are must not change how a row is summed."""
    norm: Callable[[Tensor], Tensor] = getattr(module, NORM)
    if out.device.type != "cpu":
        return norm(out)
    padded = nn.functional.pad(out, (0, 0, 0, -len(out) % TOGETHER))
    with team.stock_alone():
        return torch.cat([norm(rows) for rows in torch.split(padded, TOGETHER)])[: len(out)] if len(out) else out


def _biased(out: Tensor, module: Any, name: str, routed: Routed) -> Tensor:
    """What the matrices called `name` gave routed rows, with the bias of each row's expert where experts have some."""
    if not module.has_bias:
        return out
    biases: Tensor = getattr(module, name + BIAS)
    return out + biases[routed.experts.clamp(max=len(biases) - 1)]


def _added(out: Tensor, weights: Tensor, places: Tensor, like: Tensor) -> Tensor:
    """What the routed rows `out` give the nodes whose `places` they have, by their `weights`; zeros for further rows of `like`."""
    # what is left out stands behind all others, as zeros
    given = out.new_zeros((len(out) + 1, out.shape[1]), dtype=torch.float32)
    torch.mul(out.float(), weights[:, None].float(), out=given[:-1])
    total = torch.zeros(like.shape, dtype=torch.float32, device=like.device)
    for rank in range(places.shape[1]):
        total[: len(places)] += given[places[:, rank]]
    return total.to(like.dtype)


@contextmanager
def watching(found: dict[str, Stack], order: list[str], chosen: dict[str, int]) -> Iterator[None]:
    """Inside, a pass without numbers tells `order` which of the stacks `found` it comes to, and `chosen` how many experts each of
    its rows goes to there."""
    names: dict[nn.Module, list[str]] = {}
    for path, stack in found.items():
        names.setdefault(stack.module, []).append(path)

    def seen(module: nn.Module, count: int) -> None:
        order.extend(names[module])
        chosen.update(dict.fromkeys(names[module], count))

    for module in names:
        object.__setattr__(module, "seen", seen)
    try:
        yield
    finally:
        for module in names:
            object.__delattr__(module, "seen")

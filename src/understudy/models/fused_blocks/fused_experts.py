"""The experts of a layer in one call, for levels of the draft: taken over, as blocks are (`fused`), where that gives the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.blocks import BlockKernels, MixedExperts
from ...kernels.join_form import GateKind
from ..mixtures.expert_copies import CodedExperts
from ..mixtures.experts import BOTH, DOWN, mixes, norms
from ..streamed import CurrentPass, Pass
from .fused import alike
from .joiner import gate_of

# The stacks of gated experts.
NAMES = (BOTH, DOWN)


@dataclass(frozen=True)
class MixedSample:
    """What a stock module of experts was given in a level, and gave: see `draft_mixture.DraftMixture`."""

    hidden: Tensor
    chosen: Tensor
    weights: Tensor
    gave: Tensor


def mixtures(
    model: nn.Module, linears: Mapping[int, Callable[[Any], Tensor]], kernels: BlockKernels
) -> dict[nn.Module, MixedExperts]:
    """The modules of experts in `model` whose products, which are among `linears`, can run in one call."""
    found = {}
    for module in model.modules():
        numbers = getattr(module, "understudy_numbers", {})
        gate = _gate_of(module) if mixes(module) and numbers.keys() == set(NAMES) else None
        up, down = (linears.get(numbers.get(name, -1)) for name in NAMES)
        if gate is not None and isinstance(up, CodedExperts) and isinstance(down, CodedExperts):
            ours = kernels.mixture(up.product, down.product, gate)
            if ours is not None:
                found[module] = ours
    return found


def _gate_of(module: Any) -> GateKind | None:
    """What opens the gate of its experts, if they have no biases and no norms, and the first half of what they are given is the
    gate's."""
    if module.has_bias or norms(module):
        return None
    return gate_of(lambda x: module._apply_gate(torch.cat([x, torch.ones_like(x)], -1)))


@contextmanager
def mixed_samples(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, MixedSample]]:
    """Inside, `modules` of experts leave what they are given and give."""
    found: dict[nn.Module, MixedSample] = {}

    def keep(module: nn.Module, given: tuple[Any, ...], gave: Any) -> None:
        if len(given) == 3 and isinstance(gave, Tensor) and len(gave) == len(given[1]):
            found[module] = MixedSample(*(each.clone() for each in (*given, gave)))

    # before others, which may change what it gives
    hooks = [module.register_forward_hook(keep, prepend=True) for module in modules]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def mixes_alike(ours: MixedExperts, sample: MixedSample) -> bool:
    """Whether `ours` gives what the stock module gave."""
    return alike(sample.gave, ours(sample.hidden, sample.chosen, sample.weights))


def take_over_experts(
    module: nn.Module, ours: MixedExperts, current: CurrentPass, level: Callable[[Pass | None], object | None]
) -> None:
    """Let `ours` run in the place of a stock module of experts while a level is under way: `level` tells whether the pass is
    one."""
    stock = module.forward

    def forward(hidden: Tensor, chosen: Tensor, weights: Tensor) -> Any:
        return stock(hidden, chosen, weights) if level(current.under_way) is None else ours(hidden, chosen, weights)

    object.__setattr__(module, "forward", forward)

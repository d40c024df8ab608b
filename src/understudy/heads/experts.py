"""Mixtures of experts in the decoder layers of draft heads: a call multiplies by the matrices of those experts alone that its rows
go to, and they may be held with few bits.

Stock modules hand their rows over as those of the model do (`models/mixtures/experts.py`). What experts give a row is added up in
any order: a head only guesses, so its bits do not matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..models.mixtures.experts import Stack, by_kernels, given, stacked, stacks, watching, without_numbers
from ..models.mixtures.routed import Routed, product
from ..models.streamed import CurrentPass
from ..quantizers import Quantizer, Tensors

# The products of routed rows with the matrices of all experts of a stack, of this shape, with their number, for rows of this dtype.
MultiplyExperts = Callable[[Quantizer, Tensors, tuple[int, int], int, torch.dtype], Callable[[Routed], Tensor]]


class HeldExperts(nn.Module):
    """Takes the place of a stack of matrices, one of each expert: `tensors`, where they stay, are the buffers of the same names."""

    def __init__(self, stack: Stack, kind: Quantizer, tensors: Tensors, dtype: torch.dtype, multiply: MultiplyExperts):
        super().__init__()
        self.kind = kind
        self.shape = stack.shape
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        self._product = multiply(kind, tensors, stack.shape, stack.experts, dtype)

    def forward(self, routed: Routed) -> Tensor:
        return self._product(routed)


@cache
def experts_of_heads() -> str:
    """The name under which stock layers find `head_experts`; registered with transformers at the first call."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register("understudy-head", head_experts)
    return "understudy-head"


def hand_over(layers: nn.Module, current: CurrentPass) -> None:
    """Tell all experts in `layers` how many they are, and where the pass under way is that they are multiplied in.

    Raises CheckpointError for experts that compute in a way which is not supported."""
    for name, stack in stacks(layers).items():
        if stack.turned:
            raise CheckpointError(f"The experts of a head's layers are stored transposed ({name}); this is not supported yet.")
        object.__setattr__(stack.module, "understudy", current)
        object.__setattr__(stack.module, "understudy_experts", stack.experts)


def head_experts(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Function of experts as transformers calls it: hidden_states [n, H], the experts [n, k] that each row goes to, and how much
    each of them counts -> [n, H]."""
    if hidden_states.is_meta:
        return without_numbers(module, hidden_states, top_k_index)

    def multiply(name: str, routed: Routed) -> Tensor:
        held = getattr(module, name)
        found: Tensor = held(routed) if isinstance(held, HeldExperts) else product(routed, held)
        return found

    under_way = module.understudy.under_way
    kernels = None if under_way is None else under_way.expert_kernels
    # where a device finds the rows of experts, the host does not know how many each has, as a product with whole matrices must
    if kernels is not None and all(isinstance(getattr(module, name), HeldExperts) for name in stacked(module)):
        return by_kernels(kernels, module, hidden_states, (top_k_index, top_k_weights), len(hidden_states), multiply)
    routed, order, _ = Routed.of(hidden_states, top_k_index, module.understudy_experts)
    out = given(module, routed, multiply).float() * top_k_weights.reshape(-1)[order, None].float()
    nothing = torch.zeros(hidden_states.shape, dtype=torch.float32, device=hidden_states.device)
    return nothing.index_add(0, order // top_k_index.shape[1], out).to(hidden_states.dtype)


def experts_chosen(layers: nn.Module, call: Callable[[], object]) -> dict[str, int]:
    """By stack of experts in `layers` of a head: to how many experts each token goes. `call` runs the head for tokens without
    numbers."""
    found = stacks(layers)
    chosen: dict[str, int] = {}
    if found:
        with watching(found, [], chosen):
            call()
    return chosen


def routed_numbers(layers: nn.Module, chosen: Mapping[str, int]) -> int:
    """Numbers that a layer's experts in `layers` of a head take of a token, at most, while they are multiplied, where a token goes
    to so many as `chosen` says. 0: there are no experts."""
    takes: dict[nn.Module, int] = {}
    for name, stack in stacks(layers).items():
        # rows that go in, products, and what is made of those for the next stack or added up, which is in float32
        takes[stack.module] = takes.get(stack.module, 0) + chosen[name] * (stack.inputs + 3 * stack.outputs)
    return max(takes.values(), default=0)

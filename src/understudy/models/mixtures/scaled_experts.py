"""Experts of Llama 4: the router's score of an expert multiplies what the expert is given, where others multiply what it gives.

Stock code runs every expert on every token, with zeros for those that it does not go to. Here each token goes to its own expert, as
in other mixtures (`experts`), with its row scaled before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CheckpointError
from .experts import mix

# Classes of stock layers that are replaced.
STOCK = ("Llama4TextMoe",)


class GatedExperts(nn.Module):
    """The matrices of all experts of a layer, [experts, in, out], under the names of the `stock` module that it replaces."""

    # what `experts` asks of every module of experts
    has_gate, has_bias, has_post_expert_norm = True, False, False
    is_transposed, is_concatenated = True, True

    def __init__(self, stock: Any) -> None:
        super().__init__()
        for name, parameter in stock.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        self.act_fn: Callable[[Tensor], Tensor] = stock.act_fn

    def _apply_gate(self, both: Tensor) -> Tensor:
        gate, up = both.chunk(2, dim=-1)
        return up * self.act_fn(gate)

    def forward(self, hidden_states: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """What the experts `chosen` [n, k] make of hidden_states [n, H], each times its weight [n, k] -> [n, H]."""
        return mix(self, hidden_states, chosen, weights)


class ScaledExperts(nn.Module):
    """A router, a shared expert and the experts of a layer, with the submodules of the `stock` module that it replaces."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.experts = GatedExperts(stock.experts)
        self.router = stock.router
        self.shared_expert = stock.shared_expert

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """hidden_states [..., H] -> the same of n rows [n, H], and the router's logits [n, experts]."""
        flat = hidden_states.reshape(-1, hidden_states.shape[-1])
        scores, logits = self.router(flat)
        # of equal ones the router has taken the same
        chosen = torch.topk(logits, 1, dim=1).indices
        routed = self.experts(flat * scores.gather(1, chosen), chosen, torch.ones_like(chosen, dtype=flat.dtype))
        return self.shared_expert(flat) + routed, logits


def install_scaled_experts(model: nn.Module) -> None:
    """Put our module in the place of each of `model` that scales what experts are given. Raises CheckpointError where a token goes
    to several experts: each would need a row of its own, and no such model is published."""
    for path, module in list(model.named_modules()):
        if type(module).__name__ in STOCK:
            if (count := int(module.top_k)) != 1:
                raise CheckpointError(
                    f"{path} of {type(model).__name__} scales what experts are given and sends a token to {count} of them"
                    " (num_experts_per_tok); only 1 is supported."
                )
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, ScaledExperts(module))

"""Experts of JetMoE: stacks of matrices that are multiplied by one at a time, in networks and around attention.

A row of a node is there once for each expert that it goes to. What it is multiplied by is asked of the pass under way, as of other
experts (`experts`), and the stock modules around are replaced by functions that sort no rows by themselves."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .experts import STACKS
from .routed import Routed

# The class of a stack, and that of a network of two.
STACK, NETWORK = "JetMoeParallelExperts", "JetMoeMoE"
# What `experts` asks of a module of experts.
LONE = {
    "has_gate": False, "has_bias": False, "has_post_expert_norm": False, "is_transposed": False, "is_concatenated": True,
    "_apply_gate": None, STACKS: ("weight",),
}  # fmt: skip


def install_lone_stacks(model: nn.Module) -> None:
    """Let stacks of the stock `model` that are multiplied by one at a time be those of experts, and networks use them so."""
    for module in model.modules():
        if type(module).__name__ == STACK:
            for name, value in LONE.items():
                object.__setattr__(module, name, value)
        elif type(module).__name__ == NETWORK:
            object.__setattr__(module, "forward", partial(_network, module))


def chosen_by(router: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The experts [n, k] of rows hidden [n, H], and how much each counts, [n, k]."""
    scores, chosen = router.layer(hidden).float().topk(router.top_k, dim=1)
    return chosen, torch.softmax(scores, dim=1).type_as(hidden)


def multiplied(stack: Any, rows: Tensor, chosen: Tensor) -> Tensor:
    """rows [n, k, K], each times the matrix of its expert `chosen` [n, k]: [n, k, N]."""
    count, each, columns = rows.shape
    if rows.is_meta:
        if (seen := getattr(stack, "seen", None)) is not None:
            seen(stack, each)
        return rows.new_empty(count, each, stack.output_size)
    under_way, number = stack.understudy.under_way, stack.understudy_numbers["weight"]
    assert under_way is not None, "a streamed model runs only through its target or draft view"
    nodes = under_way.count * each
    own, experts = rows.reshape(-1, columns)[:nodes], chosen.reshape(-1, 1)[:nodes]
    out = rows.new_zeros(count * each, stack.output_size)
    if (kernels := under_way.expert_kernels) is not None:
        there = kernels.places(experts, stack.understudy_experts)
        made = under_way.linear(number, Routed(own.index_select(0, there.nodes), there.experts, there.starts))
        out[:nodes] = made.index_select(0, there.rows.reshape(-1).long())
    else:
        routed, order, _ = Routed.of(own, experts, stack.understudy_experts)
        out[order] = under_way.linear(number, routed)
    return out.view(count, each, -1)


def added(given: Tensor, weights: Tensor) -> Tensor:
    """What experts `given` [n, k, N] come to by their weights [n, k], in the order of choices and rounded once: [n, N]."""
    total = torch.zeros(given.shape[0], given.shape[2], dtype=torch.float32, device=given.device)
    for rank in range(given.shape[1]):
        total += given[:, rank].float() * weights[:, rank, None].float()
    return total.to(given.dtype)


def _network(module: Any, layer_input: Tensor) -> Tensor:
    flat = layer_input.reshape(-1, layer_input.shape[-1])
    chosen, weights = chosen_by(module.router, flat)
    rows = flat[:, None].expand(-1, chosen.shape[1], -1)
    gate, up = multiplied(module.input_linear, rows, chosen).chunk(2, dim=-1)
    given = multiplied(module.output_linear, module.activation(gate) * up, chosen)
    out: Tensor = added(given, weights).view(layer_input.shape) + module.bias
    return out

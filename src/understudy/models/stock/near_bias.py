"""Attention with a bias by distance (Inkling): what is added to a score depends on the query and on how far the key lies before it,
up to an extent.

Stock code makes a bias for each pair of tokens of a pass, which a tree's nodes are not placed by. Here it makes the bias of each
distance, and attention takes of it what the position of a key says."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from ...errors import CheckpointError
from ...kernels.head_products import HeadProduct

# In a stock module that makes such a bias: its profiles [numbers of a query's state, extent], and how long they are.
PROFILES, EXTENT = "proj", "rel_extent"
# What stock code tells attention of it.
BIAS = "position_bias"


def install_near_bias(model: nn.Module) -> int:
    """Let each module of the stock `model` that makes a bias by distance make that of each distance; returns how many there are."""
    count = 0
    for module in model.modules():
        profiles = module._parameters.get(PROFILES)
        if profiles is not None and profiles.dim() == 2 and getattr(module, EXTENT, None) == profiles.shape[1]:
            object.__setattr__(module, "forward", partial(_by_distance, module, {}))
            count += 1
    return count


def _by_distance(module: Any, made: dict[int, HeadProduct], states: Tensor, *_: Any) -> Tensor:
    """states [1, n, heads, size] -> the bias [1, heads, n, extent] of each distance. made: what multiplies by the profiles, once
    they are there."""
    if states.is_meta:
        return states.new_empty(1, states.shape[2], states.shape[1], module.rel_extent)
    profiles: Tensor = module.proj
    if id(profiles) not in made:
        made.clear()
        made[id(profiles)] = HeadProduct(profiles.detach().to(states.dtype).T[None])
    rows = states[0].flatten(0, 1)[:, None]
    return made[id(profiles)](rows).view(*states.shape[1:3], -1).transpose(0, 1)[None]


def bias_given(module: nn.Module, given: Any) -> Tensor | None:
    """[n, heads, extent]: what was `given` to the attention `module` as a bias, by distance; None where nothing was.

    Raises CheckpointError for a bias that was not made here."""
    if given is None:
        return None
    if getattr(module, EXTENT, None) != given.shape[-1]:
        raise CheckpointError(f"{type(module).__name__} adds a bias to its scores in a way that is not supported yet.")
    bias: Tensor = given[0].transpose(0, 1)
    return bias

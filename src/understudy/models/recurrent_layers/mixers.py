"""The table of recurrent layers: how configs name each kind, what it keeps, and the modules that take the stock ones' places."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import CheckpointError
from ...recurrent import RecurrentShape
from ..stock.wrapper import text_config
from .channel_delta import ChannelDelta, channel_delta_shape
from .convolved_heads import (
    AddedConvolution,
    CompressedConvolution,
    compressed_shape,
    convolved_heads,
    convolved_window,
)
from .gated_delta import OlmoGatedDelta, Qwen3NextGatedDelta, Qwen35GatedDelta, gated_delta_shape
from .gated_unit import GatedUnit, gated_unit_shape
from .lightning import Lightning, lightning_shape, take_any_cache
from .mamba import (
    FalconMamba2,
    Mamba2,
    ShortConvolution,
    mamba2_alone_shape,
    mamba2_shape,
    nemotron_shape,
    short_convolution_shape,
    zamba_shape,
)
from .mamba1 import Mamba1, jamba_shape, mamba1_shape
from .mixer import Mixer


@dataclass(frozen=True)
class RecurrentKind:
    """A kind of recurrent layers, as a config names it."""

    # a layer's entry in the config's `layer_types`
    name: str
    # a value that a config with such layers has
    told_by: str
    # what a layer keeps, read off the config
    shape: Callable[[Any], RecurrentShape]
    # does a layer have attention too?
    attends: bool = False


KINDS = (
    RecurrentKind("linear_attention", "linear_num_heads", channel_delta_shape),
    RecurrentKind("linear_attention", "linear_num_value_heads", gated_delta_shape),
    RecurrentKind("linear_attention", "mamba_n_heads", mamba2_shape),
    RecurrentKind("linear_attention", "mamba_num_heads", nemotron_shape),
    RecurrentKind("linear_attention", "mamba_dt_rank", jamba_shape),
    RecurrentKind("linear_attention", "time_step_limit", mamba2_alone_shape),
    RecurrentKind("linear_attention", "time_step_rank", mamba1_shape),
    RecurrentKind("hybrid", "mamba_n_heads", mamba2_shape, attends=True),
    RecurrentKind("hybrid", "d_rel", convolved_heads, attends=True),
    RecurrentKind("hybrid_sliding", "d_rel", convolved_window, attends=True),
    RecurrentKind("linear_attention", "mamba_ngroups", zamba_shape),
    RecurrentKind("hybrid", "mamba_ngroups", zamba_shape, attends=True),
    RecurrentKind("hybrid", "cca_time0", compressed_shape, attends=True),
    RecurrentKind("hybrid_sliding", "cca_time0", compressed_shape, attends=True),
    RecurrentKind("linear_attention", "linear_attn_alpha_factor", lightning_shape),
    RecurrentKind("linear_attention", "lru_width", gated_unit_shape),
    RecurrentKind("conv", "conv_L_cache", short_convolution_shape),
)
# A layer's entry in `layer_types` where it is a feed-forward network alone, and keeps nothing.
FEED_FORWARD = "mlp"
# Class of the stock module -> what takes its place.
MIXERS: Mapping[str, type[Mixer]] = {
    "Qwen3_5GatedDeltaNet": Qwen35GatedDelta,
    "Qwen3_5MoeGatedDeltaNet": Qwen35GatedDelta,
    "Qwen4ExpTextGatedDeltaNet": Qwen35GatedDelta,
    "Qwen3NextGatedDeltaNet": Qwen3NextGatedDelta,
    "OlmoHybridGatedDeltaNet": OlmoGatedDelta,
    "KimiLinearDeltaAttention": ChannelDelta,
    "BailingHybridDeltaAttention": ChannelDelta,
    "Glm5NextTextLinearAttention": ChannelDelta,
    "JambaMambaMixer": Mamba1,
    "MambaMixer": Mamba1,
    "FalconMambaMixer": Mamba1,
    "Lfm2ShortConv": ShortConvolution,
    "Lfm2MoeShortConv": ShortConvolution,
    "Lfm3ShortConv": ShortConvolution,
    "ZayaCCAProjection": CompressedConvolution,
    "MiniMaxLightningAttention": Lightning,
    "RecurrentGemmaRecurrentBlock": GatedUnit,
    "InklingShortConvolution": AddedConvolution,
    "BambaMixer": Mamba2,
    "Mamba2Mixer": Mamba2,
    "Zamba2MambaMixer": Mamba2,
    "GraniteMoeHybridMambaLayer": Mamba2,
    "NemotronHMamba2Mixer": Mamba2,
    "FalconH1Mixer": FalconMamba2,
}


def layer_values(config: Any) -> dict[str, Any]:
    """The values of a transformers config by name, with the kind of each layer, which some classes work out."""
    return {**vars(config), "layer_types": getattr(config, "layer_types", None)}


def recurrent_kinds(values: Mapping[str, Any]) -> list[RecurrentKind | None]:
    """For each layer of a config with `values` its kind, where it is a recurrent one that is known; empty where all are alike."""
    known = [kind for kind in KINDS if values.get(kind.told_by)]
    return [next((kind for kind in known if kind.name == str(each)), None) for each in values.get("layer_types") or []]


def recurs(config: Any) -> bool:
    """Has the model of a transformers config recurrent layers of a known kind?"""
    return any(recurrent_kinds(layer_values(config)))


def install_mixers(model: Any) -> None:
    """Put a mixer in the place of the recurrent part of each layer of a stock model. CheckpointError for one that is not known."""
    found = {}
    for path, module in list(model.named_modules()):
        mixer = MIXERS.get(type(module).__name__)
        if mixer is not None:
            parent, _, name = path.rpartition(".")
            if not hasattr(module, "layer_idx"):
                module.layer_idx = next(int(part) for part in path.split(".") if part.isdigit())
            mine = mixer(module)
            found[mine.layer_idx] = mine
            setattr(model.get_submodule(parent), name, mine)
    if any(isinstance(each, Lightning) for each in found.values()):
        take_any_cache(model)
    if unused := {name for each in found.values() for name in each.left_out}:
        known: Any = getattr(model, "_keys_to_ignore_on_load_unexpected", None)
        model._keys_to_ignore_on_load_unexpected = [*(known or ()), *(rf"\.{name}$" for name in sorted(unused))]
    for index, kind in enumerate(recurrent_kinds(layer_values(text_config(model.config)))):
        if kind is not None and index not in found:
            raise CheckpointError(f"Layer {index} of {type(model).__name__} is recurrent in a way that is not supported yet.")

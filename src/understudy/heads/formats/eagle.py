"""EAGLE and EAGLE-2 as their authors publish them: `fc` and `layers`, with a copy of the target's embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import HeadConfig, TargetFacts
from . import HeadContent, HeadFormat, Tensors, count, layer_of, renamed, with_output_biases

# The target's own, copied for training.
DROPPED = ("embed_tokens.weight", "lm_head.weight")


class PublishedEagle(HeadFormat):
    """One head of SafeAILab/EAGLE, of one layer or more."""

    def fits(self, config: Mapping[str, Any], tensors: Tensors) -> bool:
        fc = tensors.get("fc.weight")
        return fc is not None and fc.dim() == 2 and fc.shape[1] == 2 * fc.shape[0] and "layers.0.self_attn.q_proj.weight" in tensors

    def translate(self, config: Mapping[str, Any], tensors: Tensors) -> HeadContent:
        return eagle(config, tensors, {})


def eagle(layer: Mapping[str, Any], tensors: Tensors, names: Mapping[str, str], architecture: str = "") -> HeadContent:
    """The EAGLE head of the config of its layers. `names` are how its tensors' names change."""
    found = with_output_biases(renamed(tensors, names, DROPPED))
    options = {"bias": "fc.bias" in found}
    if "layers.0.input_layernorm.weight" in found:
        options["first_norm"] = True
    if "norm.weight" in found:
        options["last_norm"] = True
    target = TargetFacts(count(layer, "hidden_size"), count(layer, "vocab_size"), architecture=architecture)
    layers = count(layer, "num_hidden_layers")
    return HeadContent(HeadConfig("eagle", target, (-1,), layers=layers, layer=layer_of(layer, found), options=options), found)

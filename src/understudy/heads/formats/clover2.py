"""Clover-2 as its authors' code saves it: names begin with `clover_`, and the config has an entry `clover`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import CheckpointError
from .. import BEFORE_NORM, HeadConfig, TargetFacts
from . import HeadContent, HeadFormat, Tensors, count, layer_of, renamed, section

_DECODER = {"input_layernorm.": "norm.", "q.": "query.", "k.": "key.", "v.": "value."}
NAMES = {
    **{f"clover_head_mlp_rnn.{old}": f"first_decoder.{new}" for old, new in _DECODER.items()},
    **{f"clover_head_mlp_rnn2.{old}": f"decoder.{new}" for old, new in _DECODER.items()},
    "clover_head_mlp.": "first_projection.",
    "clover_head_mlp2.": "projection.",
    "clover_norm.": "norm.",
    "clover_head_norm.": "head_norm.",
    "clover_embed_tokens.weight": "embedding",
}
# The target's own, which is saved with the rest.
DROPPED = ("lm_head.weight",)


class PublishedClover2(HeadFormat):
    """One head of XiaoBin1992/clover. Its embeddings are rows of the target's output head, which it brings along."""

    def fits(self, config: Mapping[str, Any], tensors: Tensors) -> bool:
        return "clover_head_mlp2.weight" in tensors

    def translate(self, config: Mapping[str, Any], tensors: Tensors) -> HeadContent:
        clover = section(config, "clover")
        if "clover_embed_tokens.weight" not in tensors:
            raise CheckpointError("The Clover-2 head lacks its embeddings, 'clover_embed_tokens.weight'. Get the head again.")
        found = renamed(tensors, NAMES, DROPPED)
        # Its code reads no rope_theta.
        layer = layer_of({**config, "rope_theta": None}, found)
        target = TargetFacts(count(config, "hidden_size"), count(config, "vocab_size"))
        heads, layers = count(clover, "num_heads"), count(clover, "num_layers")
        made = HeadConfig("clover2", target, (BEFORE_NORM,), heads=heads, layers=layers, layer=layer, own_embedding=True)
        return HeadContent(made, found)

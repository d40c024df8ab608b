"""The format of the library `speculators`, which vLLM reads: EAGLE-3 heads, and the EAGLE heads of its first versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import CheckpointError
from . import HeadContent, HeadFormat, Tensors, section
from .eagle import eagle
from .eagle3 import DEFAULT_TAPS, eagle3, layer_numbers

TYPE = "speculators_model_type"
# The verifier's own, copied for training.
VERIFIERS = ("verifier_norm.weight", "verifier_lm_head.weight")


class Speculators(HeadFormat):
    """A head with a `speculators_config`."""

    def fits(self, config: Mapping[str, Any], tensors: Tensors) -> bool:
        return TYPE in config

    def translate(self, config: Mapping[str, Any], tensors: Tensors) -> HeadContent:
        layer = section(config, "transformer_layer_config")
        tensors = {name: tensor for name, tensor in tensors.items() if name not in VERIFIERS}
        match config[TYPE]:
            case "eagle3":
                # This format's numbers always are those of layers whose input is read.
                taps = layer_numbers(config) or DEFAULT_TAPS
                return eagle3(config, layer, tensors, taps, {}, _verifier(config))
            case "eagle":
                if config.get("layernorms"):
                    raise CheckpointError("An EAGLE head of speculators with layernorms is not supported.")
                one = {**layer, "num_hidden_layers": 1}
                return eagle(one, tensors, {"fusion_fc.": "fc.", "transformer.": "layers.0."}, _verifier(config))
            case other:
                raise CheckpointError(f"Heads of speculators of the type {other!r} are not supported; eagle3 and eagle are.")


def _verifier(config: Mapping[str, Any]) -> str:
    """The architecture of the model that the head was trained for; "" where that is not told."""
    verifier = (config.get("speculators_config") or {}).get("verifier") or {}
    named = verifier.get("architectures") or [""]
    return str(named[0])

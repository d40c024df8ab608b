"""Heads as others publish them. Each format says which files are in it, and makes a `HeadConfig` and named tensors of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError
from .. import HeadConfig

Tensors = Mapping[str, Tensor]
# The end of what is said of a head that cannot be used.
ADVICE = "Get the head again, or another one."


@dataclass(frozen=True)
class HeadContent:
    """A head as it is built: what it is, and its tensors by the names of its modules."""

    config: HeadConfig
    tensors: dict[str, Tensor]


class HeadFormat(ABC):
    """A published format of heads."""

    @abstractmethod
    def fits(self, config: Mapping[str, Any], tensors: Tensors) -> bool:
        """Is a head in this format, by its config.json and by the names and shapes of its tensors?"""

    @abstractmethod
    def translate(self, config: Mapping[str, Any], tensors: Tensors) -> HeadContent:
        """What the head is in this package. Its tensors may be on the meta device, where their shapes alone count. Raises
        CheckpointError where the config or a tensor is not as the format says."""


FORMATS = {
    "speculators": "understudy.heads.formats.speculators:Speculators",
    "EAGLE-3": "understudy.heads.formats.eagle3:PublishedEagle3",
    "EAGLE": "understudy.heads.formats.eagle:PublishedEagle",
    "Clover-2": "understudy.heads.formats.clover2:PublishedClover2",
    "Medusa": "understudy.heads.formats.medusa:PublishedMedusa",
}
"""Name -> subclass of HeadFormat. They are asked in this order; the first that fits reads the head."""


def count(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """The entry `name` of a config, 1 or more, or `default`. Raises CheckpointError where there is neither."""
    found = config.get(name)
    found = default if found is None else found
    if type(found) is not int or found < 1:
        raise CheckpointError(f"The head's config has {found!r} for {name}, which should be a number of things. {ADVICE}")
    return found


def section(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The object called `name` in a config. Raises CheckpointError where there is none."""
    found = config.get(name)
    if not isinstance(found, dict):
        raise CheckpointError(f"The head's config has {found!r} for {name}, which should be an object. {ADVICE}")
    return found


def layer_of(config: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    """`HeadConfig.layer` of a head's decoder layers, by its config and by the biases and norms among its `tensors`.

    Raises CheckpointError where layers look back at a window."""
    if "sliding_attention" in (config.get("layer_types") or ()):
        raise CheckpointError("The head's layers look back at a window (layer_types); this is not supported.")
    named = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act")
    told = {name: config[name] for name in (*named, "rms_norm_eps", "max_position_embeddings") if config.get(name) is not None}
    ropes = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = ropes.pop("type", None) or ropes.get("rope_type") or "default"
    theta = ropes.get("rope_theta") or config.get("rope_theta") or 10000.0
    told["rope_parameters"] = {**ropes, "rope_type": kind, "rope_theta": float(theta)}
    told["attention_bias"] = any(name.endswith("q_proj.bias") for name in tensors)
    told["mlp_bias"] = any(name.endswith("up_proj.bias") for name in tensors)
    if any(name.endswith("self_attn.q_norm.weight") for name in tensors):
        # Llama's layers have no norms of queries and keys, Qwen3's do.
        told |= {"model_type": "qwen3", "num_hidden_layers": count(config, "num_hidden_layers")}
    return told


def renamed(tensors: Tensors, changes: Mapping[str, str], dropped: Iterable[str] = ()) -> dict[str, Tensor]:
    """`tensors` without those called as in `dropped`; what begins as a key of `changes` begins as its value instead. Frequencies of
    rotary positions, which older libraries saved too, are left out: the config tells them."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in dropped or name.endswith("rotary_emb.inv_freq"):
            continue
        old = next((old for old in changes if name.startswith(old)), "")
        found[changes.get(old, "") + name.removeprefix(old)] = tensor
    return found


def with_output_biases(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` in which each attention that has biases has one of its output too: of zeros where it has none as published."""
    for name in [name for name in tensors if name.endswith("q_proj.bias")]:
        output = name.replace("q_proj", "o_proj")
        size = len(tensors[output.replace("bias", "weight")])
        tensors.setdefault(output, tensors[name].new_zeros(size))
    return tensors


def token_map(tensors: Tensors, says: int, vocabulary: int) -> Tensor:
    """[says] the target's token for each of a head's, of `d2t`, which is what to add to it. Without it they are the same.

    Raises CheckpointError where `t2d`, which marks the target's tokens that the head can say, contradicts it."""
    own, added, marked = torch.arange(says), tensors.get("d2t"), tensors.get("t2d")
    if added is None:
        if says != vocabulary:
            said = f"The head says {says} of {vocabulary} tokens, and lacks the tensor 'd2t', which tells which those are"
            raise CheckpointError(f"{said}. {ADVICE}")
        return own
    if added.is_meta:
        return own.to("meta")
    if added.shape != own.shape:
        raise CheckpointError(f"The head says {says} tokens, and 'd2t' tells of {list(added.shape)}. {ADVICE}")
    tokens = own + added.to(torch.int64)
    inside = bool(((tokens >= 0) & (tokens < vocabulary)).all())
    if marked is not None and inside and not (int(marked.sum()) == says and bool(marked[tokens].all())):
        raise CheckpointError(f"The head's tensors 'd2t' and 't2d' contradict each other. {ADVICE}")
    return tokens

"""What `--head` names: the kinds of heads that can be trained, with their options, and how each is shaped for its target."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from ..errors import UsageError
from ..heads import DraftHead, HeadConfig, TargetFacts
from ..heads.files import built
from ..models.wrapper import text_config
from ..registry import build
from .target import FrozenTarget

KINDS = {
    "eagle": "understudy.training.kinds:eagle",
    "medusa": "understudy.training.kinds:medusa",
}
"""Kind -> function that gives the config of a head from a Basis; its keyword-only arguments are what `kind:key=value` sets."""


@dataclass(frozen=True)
class Basis:
    """What heads for one target have in common."""

    facts: TargetFacts
    # Arguments of the LlamaConfig of a decoder layer as wide as the target's own.
    layer: dict[str, Any]
    # Tokens that the head can say; 0: all of the target's.
    draft_vocab_size: int

    @classmethod
    def of(cls, facts: TargetFacts, config: Any, draft_vocab_size: int) -> Basis:
        """The basis for the model of a transformers `config`."""
        text = text_config(config)
        heads = text.num_attention_heads
        ropes = getattr(text, "rope_parameters", None) or {}
        layer = {
            "hidden_size": facts.hidden_size,
            "intermediate_size": getattr(text, "intermediate_size", None) or 4 * facts.hidden_size,
            "num_attention_heads": heads,
            "num_key_value_heads": getattr(text, "num_key_value_heads", None) or heads,
            "head_dim": getattr(text, "head_dim", None) or facts.hidden_size // heads,
            "rms_norm_eps": getattr(text, "rms_norm_eps", None) or 1e-6,
            "max_position_embeddings": getattr(text, "max_position_embeddings", None) or 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": float(ropes.get("rope_theta") or 10000.0)},
        }
        return cls(facts, layer, draft_vocab_size)


def eagle(basis: Basis, *, depth: int = 1) -> HeadConfig:
    """`eagle:depth=D`: D decoder layers. More than one is the shape that Scylla scales, with norms."""
    _least("eagle", "depth", depth, 1)
    options = {"first_norm": True, "last_norm": True}
    return HeadConfig("eagle", basis.facts, (-1,), basis.draft_vocab_size, layers=depth, layer=basis.layer, options=options)


def medusa(basis: Basis, *, heads: int = 4) -> HeadConfig:
    """`medusa:heads=N`: N heads, each a residual block."""
    _least("medusa", "heads", heads, 1)
    return HeadConfig("medusa", basis.facts, (-1,), basis.draft_vocab_size, heads=heads)


def _least(kind: str, name: str, value: int, least: int) -> None:
    if value < least:
        raise UsageError(f"--head {kind}: {name} must be {least} or more, got {value}.")


def config_of(spec: str, basis: Basis) -> HeadConfig:
    """The config that `kind` or `kind:key=value,...` stands for. Raises UsageError for what is unknown."""
    config: HeadConfig = build("head", KINDS, spec, basis)
    if config.draft_vocab_size >= config.target.vocab_size:
        return replace(config, draft_vocab_size=0)
    return config


def first_head(config: HeadConfig, target: FrozenTarget, tokens: torch.Tensor | None, seed: int) -> DraftHead:
    """A head of `config` with the values that training starts from. `tokens`: those that it can say, where not all."""
    torch.manual_seed(seed)
    head = built(config)
    if tokens is not None:
        assert head.token_map is not None and head.output is not None
        head.token_map.copy_(tokens)
        output: Any = head.output
        output.weight.data.copy_(target.head.weight[tokens])
        output.requires_grad_(False)
    return head

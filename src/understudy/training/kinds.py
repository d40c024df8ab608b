"""What `--head` names: the kinds of heads that can be trained, with their options, and how each is shaped for its target."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..heads import BEFORE_NORM, DraftHead, HeadConfig, TargetFacts
from ..heads.files import built
from ..models.stock.wrapper import text_config
from ..registry import build
from .target import FrozenTarget

KINDS = {
    "clover": "understudy.training.kinds:clover",
    "clover2": "understudy.training.kinds:clover2",
    "eagle": "understudy.training.kinds:eagle",
    "eagle3": "understudy.training.kinds:eagle3",
    "medusa": "understudy.training.kinds:medusa",
}
"""Kind -> function that gives the config of a head from a Basis; its keyword-only arguments are what `kind:key=value` sets."""


@dataclass(frozen=True)
class Basis:
    """What heads for one target have in common."""

    facts: TargetFacts
    # Arguments of the LlamaConfig of a decoder layer as wide as the target's own.
    layer: dict[str, Any]
    # Are the target's embeddings the rows of its output head?
    tied: bool
    # Tokens that the head can say; 0: all of the target's.
    draft_vocab_size: int

    @classmethod
    def of(cls, facts: TargetFacts, config: Any, tied: bool, draft_vocab_size: int) -> Basis:
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
        whole = 0 if draft_vocab_size >= facts.vocab_size else draft_vocab_size
        return cls(facts, layer, tied, whole)

    def config(self, kind: str, taps: tuple[int, ...], **more: Any) -> HeadConfig:
        return HeadConfig(kind, self.facts, taps, self.draft_vocab_size, **more)


def medusa(basis: Basis, *, heads: int = 4) -> HeadConfig:
    """`medusa:heads=N`: N heads, each a residual block."""
    return basis.config("medusa", (-1,), heads=_at_least(1, "medusa", "heads", heads))


def clover(basis: Basis, *, heads: int = 4) -> HeadConfig:
    """`clover:heads=N`: N heads after one augmenting block."""
    _at_least(1, "clover", "heads", heads)
    return basis.config("clover", (BEFORE_NORM,), heads=heads, layers=1, layer=basis.layer, own_embedding=not basis.tied)


def clover2(basis: Basis, *, heads: int = 5, layers: int = 2) -> HeadConfig:
    """`clover2:heads=N,layers=D`: N heads after an augmenting block of D layers."""
    _at_least(1, "clover2", "heads", heads)
    _at_least(1, "clover2", "layers", layers)
    return basis.config("clover2", (BEFORE_NORM,), heads=heads, layers=layers, layer=basis.layer, own_embedding=not basis.tied)


def eagle(basis: Basis, *, depth: int = 1) -> HeadConfig:
    """`eagle:depth=D`: D decoder layers in the shape that Scylla scales, with a norm before the first and after the last."""
    _at_least(1, "eagle", "depth", depth)
    options = {"first_norm": True, "last_norm": True}
    return basis.config("eagle", (-1,), layers=depth, layer=basis.layer, options=options)


def eagle3(basis: Basis, *, depth: int = 1) -> HeadConfig:
    """`eagle3:depth=D`: D decoder layers that read hidden states of three depths, those of the paper's authors."""
    _at_least(1, "eagle3", "depth", depth)
    blocks = basis.facts.layers
    taps = tuple(sorted({min(2, blocks), blocks // 2, max(blocks - 3, 1)}))
    # An output head of its own, which is trained, also where it says all tokens.
    wide = replace(basis, draft_vocab_size=basis.draft_vocab_size or basis.facts.vocab_size)
    return wide.config("eagle3", taps, layers=depth, layer=basis.layer)


def _at_least(least: int, kind: str, name: str, value: int) -> int:
    if value < least:
        raise UsageError(f"--head {kind}: {name} must be {least} or more, got {value}.")
    return value


def config_of(spec: str, basis: Basis) -> HeadConfig:
    """The config that `kind` or `kind:key=value,...` stands for. Raises UsageError for what is unknown."""
    config: HeadConfig = build("head", KINDS, spec, basis)
    return config


def first_head(config: HeadConfig, target: FrozenTarget, tokens: Tensor | None, seed: int) -> DraftHead:
    """A head of `config` with the values that training starts from. `tokens`: those that it can say, where it has a choice."""
    torch.manual_seed(seed)
    head = built(config)
    if head.token_map is not None:
        assert tokens is not None and len(tokens) == len(head.token_map)
        head.token_map.copy_(tokens)
    head.start(target.weights)
    if head.output is not None and config.kind != "eagle3":
        head.output.requires_grad_(False)
    return head

"""A training that begins with a trained head: its weights go on, and decoder layers that it lacks begin by adding nothing.

So a deep head is as good at its first step as the shallow one that it grew from (progressive stacking, Gong et al., ICML 2019)."""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import UsageError
from ..heads import DraftHead, HeadConfig
from ..heads.files import check, config_of, load
from ..heads.held import Holding
from ..heads.layers import HeadLayers

# What must be the same in both, and how people call it.
ALIKE = {
    "kind": "kind", "taps": "hidden states that it reads", "draft_vocab_size": "draft vocabulary", "heads": "number of heads",
    "layer": "shape of a layer", "own_embedding": "embeddings", "options": "options",
}  # fmt: skip


def check_start(path: Path, wanted: HeadConfig) -> None:
    """Raise UsageError where a head of the config `wanted` cannot begin as the one in `path`, and CheckpointError where that holds
    none."""
    there = config_of(path)
    check(there, wanted.target, f"The head {path}")
    for name, words in ALIKE.items():
        if getattr(there, name) != getattr(wanted, name):
            raise UsageError(f"--start {path} has another {words} than --head asks for: name a head that is alike, or none.")
    if there.layers > wanted.layers:
        raise UsageError(f"--start {path} has {there.layers} decoder layers, more than the {wanted.layers} that --head asks for.")


def begin_as(head: DraftHead, path: Path) -> None:
    """Give `head`, which begins as its paper says, the weights of the trained head in `path`. What it has more of layers adds
    nothing yet. Raises CheckpointError where the weights cannot be read."""
    start = load(path, Holding(torch.float32))
    for layers in head.modules():
        if isinstance(layers, HeadLayers):
            layers.add_nothing(start.config.layers)
    head.load_state_dict(start.state_dict(), strict=False)

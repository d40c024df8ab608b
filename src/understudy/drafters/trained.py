"""Which trained head drafts, as a drafter's options name it: found, checked against the model that it is for, counted and opened.

All but its weights is known before a model is prepared, so a head that does not fit is refused before any work."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import torch

from ..errors import UsageError
from ..heads import DraftHead, HeadConfig, Places
from ..heads.experts import experts_chosen, routed_numbers
from ..heads.files import built, check
from ..heads.held import Holding, tensor_bytes, unread_bytes
from ..heads.layers import layer_shapes
from ..heads.source import Bearer, HeadDirectory, HeadSource
from ..models.mixtures.expert_copies import expert_copies
from ..models.stock.shape import cache_dtype
from . import TargetModel
from .growing_tree import MOST_NODES
from .head_runner import HeadRunner
from .head_state import PIECE, HeadState

# Bits of a head's weights where nobody says how many: its guesses are as good as with all of them, and it takes half of the memory.
BITS = 8


class HeadChoice(Protocol):
    """A trained head, as a drafter's options name it."""

    @property
    def bits(self) -> int:
        """Bits of its weights where it drafts."""

    def source(self, bearer: Bearer) -> HeadSource:
        """The head for the model `bearer`, which may not be prepared yet. Raises UsageError where it fits another one."""


@dataclass(frozen=True)
class NamedHead:
    """A head in a directory of its own."""

    # What the method that names it wants it to be: a name in HEADS.
    kind: str
    # The directory; "": none was named.
    place: str
    # Bits of its weights where it drafts.
    bits: int = BITS

    @cached_property
    def directory(self) -> HeadDirectory:
        """What lies there. Raises UsageError for none, and for a head of another kind; CheckpointError where it cannot be read."""
        if not self.place:
            raise UsageError(f"{self.kind} needs the head that drafts: --method {self.kind}:HEAD, a directory or a hub id.")
        found = HeadDirectory.of(Path(self.place).expanduser())
        if found.config.kind != self.kind:
            kind = found.config.kind
            raise UsageError(f"{self.place} holds a head of kind {kind}, not {self.kind}: --method {kind}:{self.place}.")
        return found

    @cached_property
    def needs_target_output(self) -> bool:
        """Are its logits those of the target's output head?"""
        return built(self.directory.config, "meta").needs_target_output

    def source(self, bearer: Bearer) -> HeadSource:
        """The head for the model `bearer`. Raises UsageError where it was made for another one."""
        found = self.directory
        check(found.config, bearer.facts, f"The head {self.place}")
        return found


@dataclass(frozen=True)
class HeadMemory:
    """Bytes that a head takes beside a model."""

    # In all.
    held: int = 0
    # Those of experts that a level of one token leaves unread.
    unread: int = 0


def head_memory(config: HeadConfig, rows: int, tokens: int, dtype: torch.dtype, bits: int) -> HeadMemory:
    """What a head of `config` takes beside a model that computes in `dtype`: its tensors, with so many `bits` a weight, its cache
    for `rows` rows of `tokens` slots, a tree's states in each row, hidden states that wait to be read, and what reading a piece of
    a prompt takes."""
    head = built(config, "meta")
    chosen = _chosen(head)
    numbers: int = sum(shape.numbers for shape in layer_shapes(config))
    kept = rows * tokens * numbers * cache_dtype(dtype).itemsize
    states = rows * (MOST_NODES + 1) * head.state_size
    waiting = rows * 2 * (PIECE + head.lag) * len(config.taps) * config.target.hidden_size
    widest: int = config.layer.get("intermediate_size", config.target.hidden_size)
    reading = (PIECE + head.lag) * (3 * widest + (4 + len(config.taps)) * config.target.hidden_size + routed_numbers(head, chosen))
    held = tensor_bytes(head, dtype, bits) + kept + (states + waiting + reading) * dtype.itemsize
    return HeadMemory(held, unread_bytes(head, dtype, bits, chosen))


def _chosen(head: DraftHead) -> dict[str, int]:
    """To how many experts of each stack of `head`, which has no values, a token goes."""
    size, taps = head.config.target.hidden_size, len(head.config.taps)
    # as many that all layers take one of them
    count = 1 + head.lag
    hidden, embedded = torch.empty((1, count, taps, size), device="meta"), torch.empty((1, count, size), device="meta")
    places = Places(torch.empty((1, count), dtype=torch.int64, device="meta"))
    return experts_chosen(head, lambda: head.begin(hidden, embedded, places))


def opened(source: HeadSource, target: TargetModel, bits: int) -> HeadState:
    """The head on the target's device, its weights in so many bits, which has read nothing yet.

    Raises CheckpointError or StoreError where it cannot be read."""
    device = target.device
    experts = partial(expert_copies, device=device)
    head = source.load(Holding(target.dtype, device.where, bits, device.draft_product, experts))
    return HeadState(HeadRunner(head, layer_shapes(source.config), target, target.dtype))

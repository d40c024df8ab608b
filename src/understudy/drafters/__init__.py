"""Drafters: who guesses what the exact model will say. Wrong guesses cost time, never a token.

A `DrafterSpec` declares what a drafter needs before a model is loaded; opened with the model that verifies, it gives
a `Drafter`. No other part of the package knows a drafter by its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..registry import build

if TYPE_CHECKING:  # front ends look names up here, before torch is needed
    import torch
    from torch import Tensor

    from ..cache import Cache
    from ..devices import Device
    from ..heads.source import Bearer
    from ..models.cost import PassCost
    from ..sequence import TokenSequence
    from ..tree import Nodes, TokenTree
    from ..weights.store import Store
    from .trained import HeadChoice


class DraftModel(Protocol):
    """A model that proposes tokens in fast memory: the substitute of the model that verifies, or a second model."""

    @property
    def cache(self) -> Cache:
        """The KV cache that its nodes are written to."""

    @property
    def device(self) -> Device:
        """Where it runs."""

    @property
    def draft(self) -> Callable[[Nodes], Tensor]:
        """Runs nodes and returns the logits [n, vocab] after each of them."""


class TargetModel(DraftModel, Protocol):
    """The model that verifies, to a drafter. Its `draft` runs the substitute, if that is held."""

    @property
    def cost(self) -> PassCost:
        """What a pass takes, learned from the passes so far."""

    @property
    def groups(self) -> int:
        """Groups of texts that may be under way at the same time."""

    @property
    def tree_nodes(self) -> int:
        """The most nodes that the trees of all sequences may have together in one pass."""

    @property
    def companion(self) -> DraftModel | None:
        """The second model that the drafter's spec named; None if it named none."""

    def draft_tapped(self, nodes: Nodes) -> tuple[Tensor, Tensor]:
        """As `draft`, and the substitute's hidden states at each node and each of the spec's `taps` [n, taps, hidden size]."""

    @property
    def vocabulary(self) -> int:
        """Tokens it knows."""

    @property
    def dtype(self) -> torch.dtype:
        """The type it computes in."""

    @property
    def store(self) -> Store:
        """Its prepared weights."""

    @property
    def config(self) -> Any:
        """Its transformers config."""

    def embed(self, tokens: Tensor) -> Tensor:
        """Its input embeddings [n, hidden size] of tokens [n], on its device."""

    def score(self, features: Tensor) -> Tensor:
        """Logits [..., vocab] of features [..., hidden size] by the draft's copy of its output head, which a spec must ask for
        (`holds_head`)."""

    def filling(self) -> bool:
        """Is the link still busy filling the ring, so that drafting on costs nothing?"""

    @property
    def drops(self) -> list[Callable[[], None]]:
        """What lets go of memory that a drafter has on the device: called where the device is lost."""

    def say(self, note: str) -> None:
        """Show `note` to the user and keep it with the plan's notes."""


@dataclass(frozen=True)
class Verified:
    """What one pass of the exact model found for one sequence. The KV cache is not yet compacted."""

    sequence: TokenSequence
    # What was run: a draft, or a chunk of the prompt, which is a chain.
    tree: TokenTree
    # The accepted nodes [m], the root first; all nodes of a chunk.
    path: Tensor
    # The exact model's token after each node [n]. Of a chunk: after its last node alone [1], if the prompt ends
    # there, else [0].
    choices: Tensor
    # Did this drafter make the tree? False for chunks of prompts.
    drafted: bool
    # The target's hidden states at each node and each of the spec's `taps` [n, taps, hidden size], in the model's
    # type and on its device; None without taps. They are a view of the whole pass: copy what is kept.
    hidden: Tensor | None = None


class Drafter(Protocol):
    """Guesses trees of tokens, and learns from what the exact model says of them."""

    def draft(self, sequences: Sequence[TokenSequence]) -> list[TokenTree]:
        """A tree for each sequence, rooted at its last token, with at most `sequence.remaining - 1` levels below the root."""

    def split(self, groups: int, texts: int) -> bool:
        """Expect that `draft` is called for so many groups of `texts` texts in all, at the same time and each in a thread of its
        own, and that each group has a pass of its own. False where that cannot be: then there is one group."""

    def meanwhile(self) -> AbstractContextManager[object]:
        """A block in which the pass that verifies the latest trees runs: what is drafted beside it is done when the block ends."""

    def observe(self, verified: Verified) -> None:
        """Learn what the exact model found: called for each tree and each chunk of a prompt, before its nodes are kept."""

    def rewind(self, sequence: TokenSequence, length: int) -> None:
        """Forget all but the first `length` tokens of what was in the cache row of `sequence` (0: a new text)."""

    def copy(self, row: int, sequence: TokenSequence, length: int) -> None:
        """Keep for `sequence`, of which nothing is kept yet, what is kept of the first `length` tokens in cache row `row`: its text
        begins with them."""

    def reach(self, row: int, length: int) -> int:
        """After how many of the first `length` tokens in cache row `row` the target must read on, at most, where a text begins with
        them: fewer than `length` if what the drafter needs for the next token is not kept, so that it is observed again."""

    @property
    def own_cache(self) -> OwnCache | None:
        """What is to be kept on disk with the prefixes of texts; None: the drafter needs nothing to go on after one."""

    def record_round(self, tokens: int, seconds: float, *, prefill: bool) -> None:
        """Learn that a round of drafting and verifying gave `tokens` in `seconds`, what was read of prompts beside it left out.
        `prefill`: it only read prompts."""


@dataclass(frozen=True)
class OwnCache:
    """A cache that a drafter keeps of the text of each row, as far as it has read it: it may go to disk beside the target's."""

    cache: Cache
    # Tokens at the beginning of a text that have no slot in it.
    skipped: int
    # Stands for all that its bits depend on beside the target's hidden states.
    identity: str


class Base:
    """The methods of a drafter that keeps no state."""

    own_cache: OwnCache | None = None

    def split(self, groups: int, texts: int) -> bool:
        return groups == 1

    def meanwhile(self) -> AbstractContextManager[object]:
        return nullcontext()

    def observe(self, verified: Verified) -> None: ...

    def rewind(self, sequence: TokenSequence, length: int) -> None: ...

    def copy(self, row: int, sequence: TokenSequence, length: int) -> None: ...

    def reach(self, row: int, length: int) -> int:
        return length

    def record_round(self, tokens: int, seconds: float, *, prefill: bool) -> None: ...


@dataclass(frozen=True, kw_only=True)
class DrafterSpec(ABC):
    """What a drafter needs, known before a model is loaded. The fields of a subclass are its options, each with a
    default.

    A field called `value` takes the text that is written without a key, as in `classic:MODEL`."""

    @property
    def max_nodes(self) -> int:
        """The most nodes of one sequence's tree; 0: as many as pay, within what is planned."""
        return 0

    @property
    def deepest(self) -> int:
        """The most levels below the root of a tree; 0: as many as pay, within what the caches can take back."""
        return 0

    @property
    def level_width(self) -> int:
        """The most nodes that one sequence has in one level of the draft; 0: no model drafts."""
        return 0

    @property
    def forced(self) -> bool:
        """Does every level have exactly `level_width` nodes a sequence, whatever they cost?"""
        return False

    @property
    def holds_substitute(self) -> bool:
        """Must the 4-bit copy be held in fast memory to draft?"""
        return False

    @property
    def apart(self) -> bool:
        """Can groups of texts be drafted for at the same time, where the target's layers lie on several devices?"""
        return False

    @property
    def holds_head(self) -> bool:
        """Must the copy of the output head be held in fast memory, for `TargetModel.score`?"""
        return False

    @property
    def head(self) -> HeadChoice | None:
        """The trained head that drafts or suggests; None: there is none."""
        return None

    def located(self, offline: bool) -> DrafterSpec:
        """The same, with what it names on the hub here as files. Raises CheckpointError where that cannot be had."""
        return self

    def check(self, bearer: Bearer) -> None:
        """Raise UsageError where this cannot draft for the model `bearer`, which may not be prepared yet."""
        if self.head is not None:
            self.head.source(bearer)

    @property
    def second_model(self) -> str | None:
        """The model that must be loaded beside the exact one; "": one is needed, but none was named. None: none is needed."""
        return None

    @property
    def taps(self) -> tuple[int, ...]:
        """Which hidden states of the target `observe` is given, as numbers in transformers' `hidden_states`.

        0: what the first layer is given; k: what layer k gives, the first being 1; -1: what the head is given; and
        `models.taps.BEFORE_NORM`."""
        return ()

    @abstractmethod
    def open(self, target: TargetModel) -> Drafter:
        """The drafter for what `target` verifies. Raises UsageError for options that make no sense there."""


DRAFTERS = {
    "none": "understudy.drafters.none:NoDraftSpec",
    "ngram": "understudy.drafters.ngram:NGramSpec",
    "classic": "understudy.drafters.classic:ClassicSpec",
    "eagle": "understudy.drafters.head_proposer:EagleSpec",
    "eagle3": "understudy.drafters.head_proposer:Eagle3Spec",
    "medusa": "understudy.drafters.head_proposer:MedusaSpec",
    "clover": "understudy.drafters.head_proposer:CloverSpec",
    "clover2": "understudy.drafters.head_proposer:Clover2Spec",
    "mtp": "understudy.drafters.mtp:MtpSpec",
    "substitute": "understudy.drafters.substitute:SubstituteSpec",
}
"""Method name -> subclass of DrafterSpec, found through the registry; `name:key=value` sets its options."""

# The method that is used where none is chosen.
DEFAULT_METHOD = "substitute"
# The method that drafts nothing: what others are compared with.
PLAIN_METHOD = "none"


def spec_of(method: str) -> DrafterSpec:
    """The spec that `name` or `name:key=value,...` stands for. Raises UsageError for unknown names and options."""
    spec: DrafterSpec = build("method", DRAFTERS, method)
    return spec


def methods_alone() -> list[str]:
    """The names of all methods that need neither a second model nor a trained head."""
    specs = {name: spec_of(name) for name in DRAFTERS}
    return [name for name, spec in specs.items() if spec.second_model is None and spec.head is None]

"""The model's own 4-bit copy, writing scratch slots of the target's own cache. The target overwrites those slots
when it verifies, so the draft always reads the exact model's keys and values for the past, and nothing needs
copying back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..heads import HEADS
from ..heads.files import located
from ..heads.formats import mtp
from ..heads.held import check_bits
from ..heads.source import Bearer
from ..registry import lookup
from . import TargetModel
from .head_suggest import HeadSuggester, TappedProposer
from .mtp import BroughtHead
from .proposer import ModelProposer, Proposer
from .search import Search, SearchSpec
from .suggest import WHEN, Suggester, TextSuggester
from .trained import BITS, NamedHead, opened

if TYPE_CHECKING:
    from .ahead import AheadSearch

# The kind of head that lies in the checkpoint itself.
BROUGHT = "mtp"


@dataclass(frozen=True, kw_only=True)
class SubstituteSpec(SearchSpec):
    """`substitute`: a tree search with the 4-bit copy, which is held for it; `substitute:suggest=eagle:HEAD` puts a trained head in
    front of it."""

    # KIND:HEAD, a trained head whose tokens the copy checks, several in one level, or "mtp", the one that the checkpoint brings
    # along; "": none.
    suggest: str = ""
    # Of that head's weights: 4, 8, or 16, which is as the model computes.
    suggest_bits: int = BITS
    # Is the next tree drafted while a pass runs, on a device with memory of its own? "auto": where that gives more tokens a second.
    ahead: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        lookup("ahead", self.ahead, dict.fromkeys(WHEN, 0))
        if self.forced and self.ahead == "on":
            raise UsageError("ahead=on makes no sense with a forced width and depth: no draft goes on from another one there.")
        check_bits(self.suggest_bits, "suggest_bits")
        if not self.suggest:
            if self.suggest_bits != BITS:
                raise UsageError("suggest_bits= is for a head in front of the copy: name it, as in suggest=KIND:HEAD.")
            return
        kind, _, place = self.suggest.partition(":")
        lookup("head", kind, HEADS)
        if place and kind == BROUGHT:
            raise UsageError(f"suggest={BROUGHT} is the layer that the checkpoint brings along: give no place.")
        if not place and kind != BROUGHT:
            raise UsageError(f"suggest={kind} needs the head that suggests: suggest={kind}:HEAD, a directory or a hub id.")
        if self.forced:
            raise UsageError("suggest= makes no sense with a forced width and depth: nothing is suggested there.")

    @cached_property
    def head(self) -> NamedHead | BroughtHead | None:
        kind, _, place = self.suggest.partition(":")
        if kind == BROUGHT:
            return BroughtHead(self.suggest_bits)
        return NamedHead(kind, place, self.suggest_bits) if self.suggest else None

    def located(self, offline: bool) -> SubstituteSpec:
        if not isinstance(self.head, NamedHead):
            return self
        return replace(self, suggest=f"{self.head.kind}:{located(self.head.place, offline)}")

    @property
    def holds_substitute(self) -> bool:
        return True

    @property
    def apart(self) -> bool:
        # The copy runs where its layers do, and waits its turn there; a head in front keeps what it reads of one draft.
        return self.head is None

    @property
    def taps(self) -> tuple[int, ...]:
        if isinstance(self.head, BroughtHead):
            return mtp.TAPS
        return self.head.directory.config.taps if self.head is not None else ()

    def proposer(self, target: TargetModel) -> ModelProposer:
        if self.head is None:
            return ModelProposer(target)
        if target.cache.recurrent and not target.device.drafts_see_text:
            # Levels of theirs hold no node and its parent there, or the host would wait.
            raise UsageError(f"suggest= is not for models with recurrent layers that draft on {target.device.name}: leave it out.")
        source = self.head.source(Bearer.of_store(target.store, target.config))
        return TappedProposer(target, opened(source, target, self.suggest_bits))

    def run_ahead(self, search: Search, target: TargetModel) -> AheadSearch | None:
        from .ahead import AheadSearch, obstacle
        from .launch import DeviceTreeSearch

        device, asked = target.device, self.ahead == "on"
        if asked and device.drafts_see_text:
            raise UsageError(f"ahead=on is for a device with memory of its own: on {device.name} drafts would slow passes down.")
        if self.ahead == "off" or self.forced or device.drafts_see_text:
            return None
        why = obstacle(search, target.cache)
        if asked and why:
            target.say(f"no draft is made ahead of a pass, though ahead=on asks for it: {why}")
        return AheadSearch(search, target.cache, asked) if isinstance(search, DeviceTreeSearch) and not why else None

    def suggester(self, proposer: Proposer) -> Suggester | None:
        text = super().suggester(proposer)
        if not isinstance(proposer, TappedProposer):
            return text
        made = HeadSuggester(proposer, text if isinstance(text, TextSuggester) else None)
        made.measure()
        return made

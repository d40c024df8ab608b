"""The loop: draft a tree for every sequence, verify all trees in one pass over the slow weights, keep what the target chose."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from .advance import Advance
from .batch import Batch, Heads, Member, Part, chunks
from .beside import Beside, evenly
from .cache import Cache
from .clock import Clock
from .drafters import Drafter, Verified
from .errors import Caught
from .kernels import team
from .models.cost import PassCost
from .prefixes.disk import DiskPrefixes
from .reading import ReadingRoom, shared
from .rectangle import layout_of
from .reuse import KeptText, common_prefix, longest, reads_for, row_for
from .sampling import NO_TOKEN, Chooser
from .sequence import TokenSequence
from .tree import Nodes
from .verify import accept
from .ways import WayChoice

Choose = Callable[[Tensor, int], Tensor]
Verify = Callable[[Nodes, Tensor, Choose], tuple[Tensor, Tensor | None]]
ANY_HEADS = Heads()


class Engine:
    """Runs sequences together; one may join or leave between any two passes.

    `verify(nodes, wanted, choose)` is the target: it calls `choose(logits, start)` once per tile, with the logits [k, vocab] of
    `wanted[start : start + k]`, and returns the concatenated results, with the hidden states of all nodes that the drafter asked
    for. A pass has at most `max_nodes` nodes, and it should not last too long by its `cost`, so a longer prompt is read in chunks,
    one in each pass, beside the trees of the others. No more of its tiles than `heads` says have logits."""

    def __init__(
        self,
        verify: Verify,
        cache: Cache,
        drafter: Drafter,
        max_nodes: int = 1 << 40,
        cost: PassCost | None = None,
        heads: Heads = ANY_HEADS,
        prefixes: DiskPrefixes | None = None,
        chooser: Chooser | None = None,
        beside: Beside | None = None,
    ):
        self.verify = verify
        self.cost = cost or PassCost()
        # None: nobody keeps prefixes on disk, chooses many tokens in few steps, or lets groups of texts be under way together.
        self.prefixes = prefixes
        self.chooser = chooser
        self.beside = beside
        self.cache = cache
        self.layout = layout_of(cache)
        self.drafter = drafter
        self.max_nodes = max_nodes
        self.heads = heads
        self.sequences: list[TokenSequence] = []
        self.grouping = WayChoice()
        self.clock = Clock()
        self.reading_room = ReadingRoom()
        # By cache row: what a released sequence left there, the one that was released first in front.
        self.kept: dict[int, KeptText] = {}

    def row_for(self, tokens: Sequence[int], free: Sequence[int]) -> int:
        """The row of `free` in which a text that begins with `tokens` has least to read, and loses least of what others left."""
        running = longest(self._running(), tokens, self.cache.reach)
        return row_for(tokens, free, self.kept, running.length if running else 0)

    def admit(self, sequence: TokenSequence) -> TokenSequence:
        """Let `sequence` take part from the next pass on. Tokens that its cache row holds already are not read again; what lies
        elsewhere comes with the pass, since that may take a while."""
        row = sequence.row
        assert sequence.tokens and all(row != other.row for other in self.sequences), f"row {row} is empty or taken"
        sequence.limit = sequence.limit or sequence.params.max_new_tokens
        own = self.kept.pop(row, None)
        common = common_prefix(own.tokens, sequence.to_share) if own else 0
        self._rewind(sequence, common)
        sequence.reused = self.cache.lengths[row]
        self.layout.unpad(row)
        self.sequences.append(sequence)
        return sequence

    def _running(self) -> Iterator[tuple[int, list[int]]]:
        """Rows of sequences, with the tokens of each that are accepted and lie in the cache."""
        for sequence in self.sequences:
            yield sequence.row, sequence.tokens[: self.cache.lengths[sequence.row]]

    def _take_over(self, sequence: TokenSequence) -> None:
        """Let the row of `sequence` hold what other rows hold of its text by now, and what the disk does."""
        held = self.cache.lengths[sequence.row]
        self._copy(sequence)
        if self.prefixes is not None and not sequence.sought:
            sequence.sought = True
            copied = self.cache.lengths[sequence.row]
            if self.prefixes.load(sequence):
                self._fall_back(sequence)
            sequence.loaded = max(self.cache.lengths[sequence.row] - copied, 0)
        gained = self.cache.lengths[sequence.row] - held
        if sequence.produced == 0:
            sequence.reused += gained
        sequence.read_again = max(sequence.read_again - gained, 0)

    def _fall_back(self, sequence: TokenSequence) -> None:
        """Go on from where the drafter can, in a row to which more than it knows of was added."""
        length = self.cache.lengths[sequence.row]
        self.drafter.rewind(sequence, length)
        self.cache.rewind(sequence.row, self.drafter.reach(sequence.row, length))

    def _copy(self, sequence: TokenSequence) -> None:
        """Copy the beginning of the text of `sequence` from the row that holds most of it, if that is more than its own does."""
        others = [(row, tokens) for row, tokens in self._running() if row != sequence.row]
        others += [(row, text.tokens) for row, text in self.kept.items()]
        found = longest(others, sequence.to_share, self.cache.reach)
        reached = self.drafter.reach(found.row, found.length) if found else 0
        if found is None or reached <= self.cache.lengths[sequence.row]:
            return
        self.drafter.rewind(sequence, 0)
        self.cache.copy(found.row, sequence.row, reached)
        self.drafter.copy(found.row, sequence, found.length)

    def forget(self, row: int) -> None:
        """Hold nothing of the tokens that a released sequence left in cache row `row`."""
        self.kept.pop(row, None)
        self.cache.rewind(row, 0)

    def release(self, sequence: TokenSequence, reason: str = "cancelled") -> None:
        """Take `sequence` out; its tokens stay in the cache for a later one with the same beginning."""
        sequence.finish_reason = sequence.finish_reason or reason
        self.sequences = [other for other in self.sequences if other is not sequence]
        self._rewind(sequence, len(sequence.tokens))
        tokens = sequence.tokens[: self.cache.lengths[sequence.row]]
        self.kept[sequence.row] = KeptText(tokens, min(sequence.prompt_length, len(tokens)))

    @torch.inference_mode()
    @team.stock_alone()
    def step(self, sequences: Sequence[TokenSequence] | None = None) -> list[Advance]:
        """One pass for `sequences` (all, if none are named). An exception leaves every text as it was before the pass."""
        running = self.sequences if sequences is None else sequences
        start = time.perf_counter()
        decoding = [sequence for sequence in running if not self._reading(sequence)]
        if groups := self._groups(decoding, len(running)):
            return self._side_by_side(groups, start)
        members = self._drafts(decoding)
        drafted = time.perf_counter()
        try:
            members += self._chunks(self._readers(running), members)
            advances = [self._own_advance(*part) for part in self._verified(members)]
        except BaseException:
            self._undo(running)
            raise
        self._record(advances, start, drafted)
        return advances

    def _verified(self, members: Sequence[Member]) -> list[Part]:
        """What the target says of `members`, in one pass."""
        batch = Batch.of(members, self.cache.lengths, self.chooser)
        with self.drafter.meanwhile():
            return batch.parts(*self.verify(batch.nodes, batch.wanted, batch.choose))

    def _groups(self, decoding: Sequence[TokenSequence], running: int) -> list[Sequence[TokenSequence]]:
        """The groups in which texts are drafted for and verified side by side; none: all of the `running` have one pass."""
        if self.beside is None:
            return []
        texts = len(decoding)
        count = self.grouping.of(texts, self.beside.groups(texts)) if texts == running else 1
        return evenly(decoding, count) if self.drafter.split(count, texts) and count > 1 else []

    def _side_by_side(self, groups: Sequence[Sequence[TokenSequence]], start: float) -> list[Advance]:
        """One pass for each of `groups`: while one is verified, others are drafted for. All of them fail together."""
        assert self.beside is not None
        ends = []

        def work(group: Sequence[TokenSequence]) -> list[Part]:
            members = self._drafts(list(group))
            ends.append(time.perf_counter())
            return self._verified(members)

        try:
            found = self.beside.side_by_side([partial(work, group) for group in groups])
            advances = [self._own_advance(*part) for parts in found for part in parts]
        except BaseException:
            self._undo([sequence for group in groups for sequence in group])
            raise
        self._record(advances, start, sum(ends) / len(ends), len(groups))
        return advances

    def _reading(self, sequence: TokenSequence) -> bool:
        """Does `sequence` have tokens to read before anything can be drafted for it?"""
        return sequence.produced == 0 or self.cache.lengths[sequence.row] < len(sequence.tokens) - 1

    def _drafts(self, decoding: list[TokenSequence]) -> list[Member]:
        self.layout.align([sequence.row for sequence in decoding])
        trees = self.drafter.draft(decoding)
        padding = self.layout.padding([len(tree) for tree in trees])
        return [Member.draft(*parts) for parts in zip(decoding, trees, padding, strict=True)]

    def _readers(self, running: Sequence[TokenSequence]) -> list[TokenSequence]:
        """Those of `running` that read in this pass. What is held elsewhere is taken over first, and who shares much of what an
        earlier one is about to read waits for it."""
        readers: list[TokenSequence] = []
        for sequence in running:
            if not self._reading(sequence):
                continue
            self._take_over(sequence)
            if not any(reads_for(self.cache, reader, sequence) for reader in readers):
                readers.append(sequence)
        return readers

    def _chunks(self, reading: list[TokenSequence], drafts: list[Member]) -> Iterator[Member]:
        """The next chunk of every text, beside `drafts`."""
        used = sum(member.size for member in drafts)
        unread = [sequence.tokens[self.cache.lengths[sequence.row] :] for sequence in reading]
        sizes = [len(tokens) for tokens in unread]
        counts = shared(sizes, self.reading_room.room(self.cost, used, len(drafts), sizes, self.max_nodes))
        return chunks(reading, unread, counts, used, self.heads)

    def _own_advance(self, member: Member, choices: Tensor, hidden: Tensor | None) -> Advance:
        """What the pass gave one sequence. An error on the way ends that sequence, and no other."""
        with Caught() as bug:
            return self._advance(member, choices, hidden)
        self.release(member.sequence, "error")
        self.forget(member.sequence.row)
        return Advance(member.sequence, [], 0, 0, member.reads, member.size, fault=bug.error)

    def _advance(self, member: Member, choices: Tensor, hidden: Tensor | None) -> Advance:
        sequence, tree = member.sequence, member.tree
        if member.reads:
            path = torch.arange(len(tree))
            new = [NO_TOKEN] if NO_TOKEN in choices else choices.tolist()[len(member.known) :]
            member.score_prompt(self.cache.lengths[sequence.row])
        else:
            path, bonus = accept(tree, choices)
            new = [*tree.tokens[path[1:]].tolist(), bonus]
        self.drafter.observe(Verified(sequence, tree, path, choices, not member.reads, hidden))
        self.cache.keep(sequence.row, path)
        sequence.end = self.layout.end(sequence.row)
        if member.reads and member.chooses:
            # The next text in this row often shares what was read so far.
            self.cache.save(sequence.row)
        if self.prefixes is not None:
            self.prefixes.keep(sequence)
        taken = self._take(sequence, new)
        drafted = 0 if member.reads else len(tree) - 1
        accepted = 0 if member.reads else min(len(path) - 1, len(taken))
        if sequence.finish_reason:
            self.release(sequence)
        logprobs = member.score(path, len(taken))
        return Advance(sequence, taken, drafted, accepted, member.reads, member.size, logprobs, tree.counts)

    def _take(self, sequence: TokenSequence, tokens: list[int]) -> list[int]:
        """Append tokens one by one, exactly as plain decoding would, until one of them ends the sequence."""
        for count, token in enumerate(tokens, 1):
            if token == NO_TOKEN:
                sequence.finish_reason = "error"
                return tokens[: count - 1]
            if sequence.remaining <= 0:  # nothing was to be generated at all
                sequence.finish_reason = "length"
                return []
            sequence.take(token)
            if sequence.finish_reason:
                return tokens[:count]
        return tokens

    def _rewind(self, sequence: TokenSequence, length: int) -> None:
        """Hold at most the first `length` tokens of the row of `sequence`, in the target's cache and in the drafter's."""
        wanted = min(length, self.cache.lengths[sequence.row])
        self.drafter.rewind(sequence, wanted)
        reached = self.cache.rewind(sequence.row, self.drafter.reach(sequence.row, wanted))
        sequence.read_again += wanted - reached

    def _undo(self, sequences: Sequence[TokenSequence]) -> None:
        """After a pass that failed half way: no cache row holds more than its sequence has tokens for."""
        for sequence in sequences:
            if sequence in self.sequences:
                self._rewind(sequence, len(sequence.tokens) - 1)

    def _record(self, advances: Sequence[Advance], start: float, drafted: float, groups: int = 1) -> None:
        """Learn from a step that began at `start` and had drafted at `drafted`. A group's rate is that of its own texts."""
        now = time.perf_counter()
        whole = sum(advance.nodes for advance in advances)
        self.clock.count(len(advances), whole, drafted - start, now - drafted)
        drafts = [advance for advance in advances if not advance.reads]
        nodes = sum(advance.nodes for advance in drafts or advances)
        beside = self.cost.extra(nodes, whole - nodes)
        # What a chunk adds is an estimate, and drafting alone took some time.
        seconds = max(now - start - beside, drafted - start)
        tokens = sum(len(advance.tokens) for advance in drafts or advances)
        if drafts == advances:
            self.grouping.learn(len(drafts), groups, tokens, seconds)
        self.drafter.record_round(tokens, seconds * groups, prefill=not drafts)

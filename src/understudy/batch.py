"""A batch: everything that one pass of the target runs, whoever it is for.

Drafted trees of sequences that are decoding and chunks of prompts that are being read lie side by side in it, so one sweep of
the weights serves them all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from .adjust import Adjustment
from .logprobs import TokenLogprob
from .sampling import NO_TOKEN, Chooser, choose, draws, joined
from .sequence import TokenSequence
from .tree import Nodes, TokenTree

NOTHING = torch.empty(0, dtype=torch.int64)
# What a pass found for a member: the target's tokens after its wanted nodes, and its nodes' hidden states; None: none are kept.
Part = tuple["Member", Tensor, Tensor | None]


@dataclass(frozen=True)
class Member:
    """The nodes that one sequence has in a pass: a drafted tree, or a chunk of tokens it has not read yet."""

    sequence: TokenSequence
    # A chunk is a chain of known tokens.
    tree: TokenTree
    # How many of the last nodes have logits: all of a draft, and of a chunk whose log-probabilities are asked for; else 1 or 0.
    wanted: int
    reads: bool
    # Tokens of the text after the first wanted nodes: those of a chunk whose log-probabilities are asked for. After the other
    # wanted nodes the target chooses.
    known: tuple[int, ...] = ()
    # By wanted node: the log-probabilities that were asked for. Of a draft, those of the accepted path. Filled by `choose`.
    logprobs: dict[int, TokenLogprob] = field(default_factory=dict)
    # Nodes after those of the tree that mean nothing: no token is chosen after them.
    padding: int = 0
    # Of a text with a grammar: the nodes that the target's own choices led to so far. After the last one it chooses next.
    followed: list[int] = field(default_factory=lambda: [0])

    @classmethod
    def draft(cls, sequence: TokenSequence, tree: TokenTree, padding: int = 0) -> Member:
        """Verify every node of `tree`, which is rooted at the last token of `sequence`, beside `padding` others."""
        return cls(sequence, tree, len(tree), False, padding=padding)

    @classmethod
    def chunk(cls, sequence: TokenSequence, tokens: Sequence[int], last: bool) -> Member:
        """Read `tokens`; after the `last` chunk of a text its next token is chosen."""
        return cls(sequence, TokenTree.chain(tokens), int(last), True)

    @classmethod
    def scored_chunk(cls, sequence: TokenSequence, first: int, count: int) -> Member:
        """Read `count` tokens of `sequence` from token `first` on, with the logits of each."""
        tokens = sequence.tokens
        known = tuple(tokens[first + 1 : first + count + 1])
        return cls(sequence, TokenTree.chain(tokens[first : first + count]), count, True, known)

    @property
    def size(self) -> int:
        """How many nodes it has in the pass."""
        return len(self.tree) + self.padding

    def nodes(self, length: int) -> Nodes:
        """All of them, in a row whose cache holds `length` tokens. Padding follows the root, so it lies within any context."""
        if not self.padding:
            return Nodes.of(self.tree, self.sequence.row, length)
        tokens = torch.cat([self.tree.tokens, self.tree.tokens[:1].expand(self.padding)])
        parents = torch.cat([self.tree.parents, torch.zeros(self.padding, dtype=torch.int64)])
        return Nodes.of(TokenTree(tokens, parents), self.sequence.row, length)

    @property
    def chooses(self) -> int:
        """After how many wanted nodes, the last ones, the target chooses a token."""
        return self.wanted - len(self.known)

    @cached_property
    def adjustment(self) -> Adjustment | None:
        """What is done to the logits of the wanted nodes before a choice; None: nothing. A chunk wants none but its text's end."""
        return Adjustment.of(self.sequence, lambda: [[]] if self.reads else self.tree.paths)

    @property
    def looks_alike(self) -> bool:
        """Whether the tokens after its wanted nodes can be chosen with those of others: each from its logits and draws alone."""
        sequence = self.sequence
        more = sequence.grammar is not None or sequence.params.logprobs is not None or bool(self.known)
        return not more and self.adjustment is None

    def choose(self, logits: Tensor, place: int, after: Tensor, chooser: Chooser | None = None) -> Tensor:
        """[k] int64 on the CPU: the tokens at positions `after` [k], after wanted nodes `place` to `place + k`, whose logits
        [k, vocab] are given. NO_TOKEN where those are no numbers. `chooser`: as `sampling.choose` takes it.

        The parts of a tree must come in order: log-probabilities are kept of its accepted path alone."""
        known = self.known[place : place + len(logits)]
        tokens = torch.tensor(known, dtype=torch.int64)
        if len(known) < len(logits):
            rest = slice(len(known), None)
            chosen = self._chosen(logits[rest], place + len(known) - len(self.known), after[rest], chooser)
            tokens = torch.cat([tokens, chosen])
        self._keep_logprobs(logits, tokens, place)
        return tokens

    def _chosen(self, logits: Tensor, first: int, after: Tensor, chooser: Chooser | None) -> Tensor:
        """[k] on the CPU: the target's tokens at positions `after` [k], after the nodes from `first` on of those it chooses after.

        With a grammar, only after nodes that its own choices lead to, NO_TOKEN after the others: no path that breaks the grammar is
        looked at, and none is accepted."""
        params = self.sequence.params
        if self.sequence.grammar is None:
            return choose(logits, params, after, self.adjustment and self.adjustment.after(first), chooser).cpu()
        assert self.adjustment is not None
        chosen = torch.full((len(logits),), NO_TOKEN)
        while first <= (node := self.followed[-1]) < first + len(logits):
            row = slice(node - first, node - first + 1)
            chosen[row] = choose(logits[row], params, after[row], self.adjustment.after(node), chooser).cpu()
            self.followed.append(len(self.tree) if self.reads else self.tree.child(node, int(chosen[node - first])))
        return chosen

    def _keep_logprobs(self, logits: Tensor, tokens: Tensor, place: int) -> None:
        params = self.sequence.params
        if params.logprobs is None and not self.known:
            return
        for node, (row, token) in enumerate(zip(logits, tokens.tolist(), strict=True), place):
            count = params.prompt_logprobs if node < len(self.known) else params.logprobs
            if count is None or token == NO_TOKEN or not self._on_path(node):
                continue
            found = TokenLogprob.of(row, token, count)
            if math.isnan(found.logprob):
                tokens[node - place] = NO_TOKEN
            else:
                self.logprobs[node] = found

    def _on_path(self, node: int) -> bool:
        """Whether the target chose every token between the root and `node`; of a chunk, each node is on the path."""
        parent = int(self.tree.parents[node])
        before = self.logprobs.get(parent)
        return self.reads or parent < 0 or (before is not None and before.token == int(self.tree.tokens[node]))

    def score(self, path: Tensor, count: int) -> list[TokenLogprob]:
        """The log-probabilities of the `count` new tokens after the nodes of `path`, where they are asked for. The sequence keeps
        them too."""
        if self.sequence.params.logprobs is None:
            return []
        nodes = [len(self.known)] if self.reads else path.tolist()
        found = [self.logprobs[node] for node in nodes[:count]]
        self.sequence.logprobs += found
        return found

    def score_prompt(self, length: int) -> None:
        """The log-probabilities of the prompt's tokens in this chunk, before which the cache holds `length`, go to the sequence."""
        if not self.known:
            return
        sequence = self.sequence
        # A chunk that is read again brings none that are there already.
        first = len(sequence.prompt_logprobs) - length
        assert first >= 0, f"{length} tokens of a prompt were passed over, {len(sequence.prompt_logprobs)} have log-probabilities"
        for node in range(first, min(len(self.known), sequence.prompt_length - length - 1)):
            if node in self.logprobs:
                sequence.prompt_logprobs.append(self.logprobs[node])


@dataclass(frozen=True)
class Heads:
    """How many tiles of a pass may have logits: the memory that is planned for them. A tile without wanted nodes has none."""

    # Nodes of a tile.
    tile: int = 1 << 40
    # Tiles of a pass with logits, at most.
    most: int = 1 << 40

    def tiles(self, first: int, count: int) -> int:
        """In how many tiles nodes `first` to `first + count` of a pass lie."""
        return -(-(first % self.tile + count) // self.tile)

    def room(self, first: int, tiles: int) -> int:
        """How many nodes from node `first` on lie in so many tiles; at least one."""
        return max(self.tile * tiles - first % self.tile, 1)


def chunks(
    reading: Sequence[TokenSequence], unread: Sequence[Sequence[int]], counts: Sequence[int], used: int, heads: Heads
) -> Iterator[Member]:
    """The next `counts` tokens of each of the texts `reading`, of which `unread` are not read yet, after `used` nodes of drafts."""
    tiles = heads.most - heads.tiles(0, used)
    for place, (sequence, tokens, count) in enumerate(zip(reading, unread, counts, strict=True), 1):
        count = sequence.before_pause(len(sequence.tokens) - len(tokens), count)
        if sequence.scores_prompt:
            # Each text after this one has its end in one tile.
            count = min(count, heads.room(used, tiles - len(reading) + place))
            tiles -= heads.tiles(used, count)
            yield Member.scored_chunk(sequence, len(sequence.tokens) - len(tokens), count)
        else:
            tiles -= 1
            yield Member.chunk(sequence, tokens[:count], count == len(tokens))
        used += count


@dataclass(frozen=True)
class Batch:
    """The nodes of a pass, the nodes whose logits are wanted, and the sequence that each of them belongs to."""

    members: tuple[Member, ...]
    # All nodes of all members, in the order of `members`.
    nodes: Nodes
    # [m] int64, ascending: indices of the nodes after which a token is chosen.
    wanted: Tensor
    # [m] int64: the positions of those tokens.
    after: Tensor
    # What chooses tokens, of all members at once where it can; None: torch does, of each.
    chooser: Chooser | None = None

    @classmethod
    def of(cls, members: Sequence[Member], lengths: Sequence[int], chooser: Chooser | None = None) -> Batch:
        """The batch of `members`; `lengths[row]` tokens of a cache row are accepted. There must be at least one member."""
        nodes = Nodes.join([member.nodes(lengths[member.sequence.row]) for member in members])
        wanted = []
        first = 0
        for member in members:
            end = first + len(member.tree)
            wanted.append(torch.arange(end - member.wanted, end))
            first += member.size
        joined = torch.cat(wanted)
        return cls(tuple(members), nodes, joined, nodes.positions[joined] + 1, chooser)

    def choose(self, logits: Tensor, start: int) -> Tensor:
        """[k] int64 on the CPU: the token after each of `wanted[start : start + k]`, whose logits [k, vocab] are given."""
        end = start + len(logits)
        spans = [(member, max(first, start), min(last, end), first) for member, first, last in self._spans()]
        spans = [span for span in spans if span[1] < span[2]]
        if self.chooser is not None and all(member.looks_alike for member, *_ in spans):
            drawn = [draws(member.sequence.params, self.after[low:high]) for member, low, high, _ in spans]
            return self.chooser(logits, joined(drawn))
        chosen = []
        for member, low, high, first in spans:
            after = self.after[low:high]
            chosen.append(member.choose(logits[low - start : high - start], low - first, after, self.chooser))
        return torch.cat(chosen)

    def _spans(self) -> Iterator[tuple[Member, int, int]]:
        """Each member with the first and the end of its places in `wanted`."""
        first = 0
        for member in self.members:
            yield member, first, first + member.wanted
            first += member.wanted

    def parts(self, choices: Tensor, hidden: Tensor | None) -> list[Part]:
        """Each member with its own part of `choices` and `hidden`, as `split` and `split_hidden` give them."""
        parts = zip(self.split(choices), self.split_hidden(hidden), strict=True)
        return [(member, chosen, states) for (member, chosen), states in parts]

    def split(self, choices: Tensor) -> list[tuple[Member, Tensor]]:
        """Each member with its own part of `choices` [m], the tokens chosen after the wanted nodes."""
        if not len(self.wanted):
            choices = NOTHING
        return list(zip(self.members, torch.split(choices, [member.wanted for member in self.members]), strict=True))

    def split_hidden(self, hidden: Tensor | None) -> list[Tensor | None]:
        """For each member its own part of `hidden` [n, ...], hidden states of all nodes; None where there are none."""
        if hidden is None:
            return [None] * len(self.members)
        parts = torch.split(hidden, [member.size for member in self.members])
        return [part[: len(member.tree)] for member, part in zip(self.members, parts, strict=True)]

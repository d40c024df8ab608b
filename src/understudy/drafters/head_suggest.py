"""A trained head in front of the substitute: it says a chain of tokens, which the substitute checks in one level.

At the root of a tree the head reads the target's own hidden states, as a drafter of its own would. Below that it reads those that
the substitute had at the nodes of the chain of first choices, which are close to them, so every level begins afresh; only between
two levels does the head go on from states of its own. The text suggests beside it: where its match promises more than the head
does, the chain goes on as the text did. What each promises is learned, by how sure the head was and how long the match is."""

from __future__ import annotations

import time
from bisect import bisect
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..adjust import Adjustment
from ..sampling import perturb
from ..sequence import TokenSequence
from ..tree import Nodes, TokenTree
from . import OwnCache, TargetModel, Verified
from .growing_tree import Candidate, GrowingTree
from .head_state import HeadState
from .pace import Pace
from .proposer import ModelProposer
from .suggest import NOTHING, HitRates, Origin, Promise, Suggestion, TextSuggester, Tip, checked

HEAD = "head"
# Bounds of the probability that a head gives its token: tokens between two of them are of one kind, and of another if the text
# says the same.
SURENESS = (0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.96, 0.99)
# Before anything was seen: the chance that the proposer says a token of each kind, the weight of that belief, and the mean chance.
BELIEVED = (0.12, 0.25, 0.35, 0.5, 0.6, 0.75, 0.85, 0.93, 0.97)
BELIEF_WEIGHT = 4.0
BELIEVED_OF_ANY = 0.6
# Where a head does not pay, it is asked all the same once in so many levels: texts change.
PROBES = 16


class TappedProposer(ModelProposer):
    """The substitute, whose hidden states a head in front of it reads; the head reads the target's too, of what was accepted."""

    def __init__(self, target: TargetModel, reader: HeadState):
        super().__init__(target)
        self.target = target
        self.reader = reader
        # [n, taps, hidden size] at the nodes of the latest level.
        self.hidden = torch.empty(0)

    def forward(self, nodes: Nodes) -> Tensor:
        logits, self.hidden = self.target.draft_tapped(nodes)
        return logits

    def observe(self, verified: Verified, ran: Collection[int]) -> None:
        self.reader.observe(verified)

    def rewind(self, sequence: TokenSequence, length: int) -> None:
        self.reader.rewind(sequence.row, length)

    def copy(self, row: int, sequence: TokenSequence, length: int) -> None:
        self.reader.copy(row, sequence.row, length)

    def reach(self, row: int, length: int) -> int:
        return self.reader.reach(row, length)

    @property
    def own_cache(self) -> OwnCache:
        return self.reader.own_cache


@dataclass
class Trunk:
    """The chain of first choices of a tree, as far as the proposer has run it."""

    tree: GrowingTree
    # [m, taps, hidden size] pieces: the proposer's hidden states at its nodes, the root first.
    hidden: list[Tensor] = field(default_factory=list)
    # Nodes below the root that the head has read. None: not even the root.
    read: int | None = None

    def unread(self, tip: Candidate) -> tuple[list[int], Tensor]:
        """The tokens of the nodes that the head has not read, up to `tip`, and the hidden states at the node before each."""
        assert self.read is not None
        tokens = self.tree.path(tip)[self.read :]
        return tokens, torch.cat(self.hidden)[self.read : self.read + len(tokens)]


@dataclass
class Chain:
    """What is suggested after a tip so far, and what the text would say after that."""

    tip: Tip
    text: Suggestion
    tokens: list[int] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)
    sources: list[Origin] = field(default_factory=list)

    @property
    def chance(self) -> float:
        """The chance that the proposer says all of it."""
        return self.chances[-1] if self.chances else 1.0

    @property
    def sampled(self) -> bool:
        return self.tip.tree.sequence.params.temperature > 0

    @property
    def end(self) -> int:
        """The position of its last token, or of the tip."""
        return self.tip.tree.length + self.tip.candidate.depth + len(self.tokens)

    @property
    def last(self) -> int:
        return self.tokens[-1] if self.tokens else self.tip.candidate.token

    @property
    def over(self) -> bool:
        """May nothing follow?"""
        return len(self.tokens) >= self.tip.most or bool(self.tokens and self.last in self.tip.tree.sequence.stop_ids)

    def whole(self) -> Suggestion:
        """The chain, and what the text says after it; a token that ends the text is not suggested."""
        tokens, chances, sources = list(self.tokens), list(self.chances), list(self.sources)
        if tokens and tokens[-1] in self.tip.tree.sequence.stop_ids:
            return Suggestion(tokens[:-1], chances[:-1], sources[:-1])
        chances += [self.chance * chance for chance in self.text.chances]
        return Suggestion([*tokens, *self.text.tokens], chances, [*sources, *self.text.sources])


def head_rates() -> dict[bool, HitRates]:
    """By whether tokens are sampled: how often the proposer says the head's token, by how sure the head was and whether the text
    says the same. Last of all: the mean chance of what the head says, checked or not."""
    believed = (*BELIEVED, *(1 - (1 - chance) / 2 for chance in BELIEVED), BELIEVED_OF_ANY)
    return {sampled: HitRates.believing(believed, BELIEF_WEIGHT) for sampled in (False, True)}


class HeadSuggester:
    """Suggests what a head says, or what the text does: `text`, None where nothing is taken from it."""

    def __init__(self, proposer: TappedProposer, text: TextSuggester | None):
        self.proposer = proposer
        self.reader = proposer.reader
        self.runner = proposer.reader.runner
        self.text = text
        self.rates = head_rates()
        # By cache row.
        self.trunks: dict[int, Trunk] = {}
        # Times that the head was not worth asking.
        self.passed_over = 0

    def favoured(self, tree: GrowingTree, tip: Candidate) -> tuple[int, int]:
        return self.text.favoured(tree, tip) if self.text is not None else (-1, 0)

    def saw(self, tree: GrowingTree, places: Sequence[int]) -> None:
        self._trunk(tree).hidden.append(self.proposer.hidden[list(places)])

    def learn(self, tree: GrowingTree, suggestion: Suggestion, agreed: int) -> None:
        rates = self.rates[tree.sequence.params.temperature > 0]
        for origin, said, tried in checked(suggestion, agreed):
            if origin.name == HEAD:
                rates.learn(origin.kind, said, tried)
            elif self.text is not None:
                self.text.rates.learn(origin.kind, said, tried)

    def promise(self, tip: Tip, pace: Pace) -> Promise:
        chain = self._chain(tip)
        rate = self._rate(chain)
        if self._text_is_surer(chain):
            return Promise(chain.text.chances)
        chances: list[float] = []
        while len(chances) < tip.most and pace.pays_to_ask(rate ** (len(chances) + 1), 1, len(chances) + 1):
            chances.append(rate ** (len(chances) + 1))
        return Promise(chances, len(chances) * pace.step(1)) if chances else Promise(chain.text.chances)

    def suggest(self, tips: Sequence[Tip], pace: Pace) -> list[Suggestion]:
        chains = [self._chain(tip) for tip in tips]
        going = [chain for chain in chains if not self._text_is_surer(chain)]
        if going and self._asks(going, pace):
            self._ask(going, pace)
        return [chain.whole() for chain in chains]

    def _ask(self, going: list[Chain], pace: Pace) -> None:
        """Let the head add tokens to the chains that are `going`, as long as it pays."""
        start = time.perf_counter()
        going, states = self._begin(going)
        depth = 0
        while going:
            self._say(going, states, depth)
            now = time.perf_counter()
            pace.record_step(len(going), now - start)
            start = now
            depth += 1
            kept = [i for i, chain in enumerate(going) if self._goes_on(chain, depth)]
            going = [going[i] for i in kept]
            if not going or not self._pays(going, pace):
                return
            states = self._follow(going, states[kept], depth)

    def _trunk(self, tree: GrowingTree) -> Trunk:
        trunk = self.trunks.get(tree.sequence.row)
        if trunk is None or trunk.tree is not tree:
            trunk = self.trunks[tree.sequence.row] = Trunk(tree)
        return trunk

    def _chain(self, tip: Tip) -> Chain:
        return Chain(tip, self.text.after(tip) if self.text is not None else NOTHING)

    def _rate(self, chain: Chain) -> float:
        """The chance that the proposer says what the head says next, before it is asked."""
        return self.rates[chain.sampled].chance(-1)

    def _text_is_surer(self, chain: Chain) -> bool:
        return bool(chain.text.chances) and chain.text.chances[0] >= self._rate(chain)

    def _goes_on(self, chain: Chain, depth: int) -> bool:
        """May the head say more after `depth` tokens?"""
        most = self.runner.head.config.heads
        return not chain.over and not (most and depth >= most) and not self._text_is_surer(chain)

    def _pays(self, going: Sequence[Chain], pace: Pace) -> bool:
        """Is a token for each of these chains likely to save more time than the head takes to say it?"""
        chance = sum(chain.chance * self._rate(chain) for chain in going)
        return pace.pays_to_ask(chance, len(going), len(going) + sum(len(chain.tokens) for chain in going))

    def _asks(self, going: Sequence[Chain], pace: Pace) -> bool:
        if self._pays(going, pace):
            return True
        self.passed_over += 1
        return self.passed_over % PROBES == 0

    def _begin(self, going: Sequence[Chain]) -> tuple[list[Chain], Tensor]:
        """Read what the head has not read of each chain's tree, up to its tip. Returns the chains whose tip has a state, and the
        states [n, state size]."""
        trunks = [self._trunk(chain.tip.tree) for chain in going]
        new = [trunk.tree.sequence for trunk in trunks if trunk.read is None]
        states = self.reader.read(new) if new else {}
        unread = []
        for chain, trunk in zip(going, trunks, strict=True):
            trunk.read = trunk.read or 0
            if chain.tip.candidate.depth > trunk.read:
                unread.append((trunk, *trunk.unread(chain.tip.candidate)))
                trunk.read = chain.tip.candidate.depth
        if unread:
            nodes = [
                Nodes.of(TokenTree.chain(tokens), trunk.tree.sequence.row, trunk.tree.length + trunk.read + 1 - len(tokens))
                for trunk, tokens, _ in unread
                if trunk.read is not None
            ]
            made = self.runner.begin(Nodes.join(nodes), torch.cat([hidden for _, _, hidden in unread]))
            parts = torch.split(made, [len(tokens) for _, tokens, _ in unread])
            states |= {trunk.tree.sequence.row: own[-1] for (trunk, _, _), own in zip(unread, parts, strict=True)}
        known = [chain for chain in going if chain.tip.tree.sequence.row in states]
        rows = [states[chain.tip.tree.sequence.row] for chain in known]
        return known, torch.stack(rows) if rows else torch.empty(0)

    def _follow(self, going: Sequence[Chain], states: Tensor, depth: int) -> Tensor:
        """States of the last tokens of the chains, `depth` below their tips, from those of the tokens before."""
        nodes = [Nodes.of(TokenTree.chain([chain.last]), chain.tip.tree.sequence.row, chain.end) for chain in going]
        return self.runner.follow(Nodes.join(nodes), states, depth)

    def _say(self, going: Sequence[Chain], states: Tensor, depth: int) -> None:
        """Add to each chain the token that the head says after it, of which it has the state."""
        logits = self.runner.scores(states, depth)
        for chain, own in zip(going, logits, strict=True):
            token, sureness = self._choose(chain, own[None])
            kind = bisect(SURENESS, sureness)
            if chain.text.tokens and chain.text.tokens[0] == token:
                kind += len(BELIEVED)
            rates = self.rates[chain.sampled]
            rates.learn(-1, rates.chance(kind), 1)
            chain.chances.append(chain.chance * rates.chance(kind))
            chain.tokens.append(token)
            chain.sources.append(Origin(HEAD, kind))
            over = self.text is None or chain.over
            chain.text = NOTHING if over or self.text is None else self.text.after(chain.tip, chain.tokens)

    def _choose(self, chain: Chain, logits: Tensor) -> tuple[int, float]:
        """The head's token after `chain`, with the noise that the proposer chooses by, and how sure it is; logits: [1, draft
        vocab]."""
        tree = chain.tip.tree
        tokens = self.runner.head.token_map
        adjust = Adjustment.of(tree.sequence, lambda: [[*tree.path(chain.tip.candidate), *chain.tokens]])
        if adjust is not None:
            logits = self.runner.whole(logits)
            logits = adjust(logits, 0) if tokens is None else adjust(logits, 0)[:, tokens]
        position = torch.tensor([chain.end + 1], device=logits.device)
        scores = perturb(logits, tree.sequence.params, position, tokens)[0]
        best = int(scores.argmax())
        sureness = float(torch.exp(scores[best] - torch.logsumexp(scores, -1)))
        return best if tokens is None else int(tokens[best]), sureness

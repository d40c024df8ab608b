"""A trained head in front of the substitute: it says a chain of tokens, and at each place of it the next likeliest ones, which the
substitute checks in one level.

At the root of a tree the head reads the target's own hidden states, as a drafter of its own would. Below that it reads those that
the substitute had at the nodes of the chain of first choices, which are close to them, so every level begins afresh; only between
two levels does the head go on from states of its own. The text suggests beside it: where its match promises more than the head
does, the chain goes on as the text did. What each promises is learned, by how sure the head was and how long the match is."""

from __future__ import annotations

import time
from bisect import bisect
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from ..adjust import Adjustment
from ..sampling import perturb
from ..sequence import TokenSequence
from ..tree import Nodes, TokenTree
from . import OwnCache, TargetModel, Verified
from .growing_tree import Candidate, GrowingTree
from .head_chain import Chain, Trunk
from .head_state import HeadState
from .pace import Pace
from .proposer import ModelProposer
from .suggest import BELIEVED as TEXT_BELIEVED
from .suggest import NOTHING, Checked, HitRates, Origin, Promise, Suggestion, TextSuggester, Tip

HEAD = "head"
# Bounds of the probability that a head gives its token: tokens between two of them are of one kind, and of another if the text
# says the same.
SURENESS = (0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.96, 0.99)
# Before anything was seen: the chance that the proposer says a token of each kind, the weight of that belief, and the mean chance.
BELIEVED = (0.12, 0.25, 0.35, 0.5, 0.6, 0.75, 0.85, 0.93, 0.97)
BELIEF_WEIGHT = 4.0
BELIEVED_OF_ANY = 0.6
# How many tokens are suggested in the place of each of the chain's, the same bounds of their probabilities, and what is believed.
OTHERS = 2
OTHER_SURENESS = (0.02, 0.05, 0.1, 0.2, 0.35)
OTHERS_BELIEVED = (0.01, 0.03, 0.07, 0.12, 0.2, 0.3)
BELIEVED_SPARED = 0.1
# The most nodes that the head may read for each chain before its first token, for that to count as a step. Where it was not asked
# for some levels, it has more to read.
FEW = 4
# Runs of a step before the first draft, of which the fastest counts: the first reads weights that no cache has.
MEASURED = 3
# Where a head does not pay, it is asked all the same once in so many levels: texts change.
PROBES = 16


class TappedProposer(ModelProposer):
    """The substitute, whose hidden states a head in front of it reads; the head reads the target's too, of what was accepted.

    On a device with memory of its own levels are recorded, and nothing is suggested below a root: it reads the target's."""

    def __init__(self, target: TargetModel, reader: HeadState):
        super().__init__(target)
        self.target = target
        self.reader = reader
        # [n, taps, hidden size] at the nodes of the latest level.
        self.hidden = torch.empty(0)

    def forward(self, nodes: Nodes) -> Tensor:
        if not self.device.drafts_see_text:
            return super().forward(nodes)
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
        # Are others checked in the place of a chain's tokens? Levels on a device take chains.
        self.checks_others = proposer.device.drafts_see_text
        self.rates = head_rates()
        # The same for tokens that are suggested in the place of the chain's.
        self.other_rates = {sampled: HitRates.believing(OTHERS_BELIEVED, BELIEF_WEIGHT) for sampled in (False, True)}
        # And what the text says where the head says something else, by the length of the match: less often right than elsewhere.
        self.text_instead = HitRates.believing([0.5 * chance for chance in TEXT_BELIEVED], BELIEF_WEIGHT)
        # How many levels the others after one token are likely to save, beyond what checking them takes.
        self.spared = {sampled: HitRates.believing([BELIEVED_SPARED], BELIEF_WEIGHT) for sampled in (False, True)}
        # By cache row.
        self.trunks: dict[int, Trunk] = {}
        # Seconds of a step as it was measured at first; 0: it was not.
        self.first_step = 0.0
        # Times that the head was not worth asking.
        self.passed_over = 0

    @torch.inference_mode()
    def measure(self) -> None:
        """Find out what a step takes, before the first draft: a head that looks slow is hardly asked. Row 0 must be empty."""
        config, target = self.runner.head.config, self.proposer.target
        shape = 1, len(config.taps), config.target.hidden_size
        hidden = torch.zeros(shape, dtype=target.dtype, device=target.device.where)
        for _ in range(MEASURED):
            start = time.perf_counter()
            states = self.runner.begin(Nodes.of(TokenTree.chain([0]), 0, 1), hidden)
            self.runner.scores(states, 0).topk(1).indices.tolist()
            seconds = time.perf_counter() - start
            self.first_step = min(self.first_step or seconds, seconds)

    def favoured(self, tree: GrowingTree, tip: Candidate) -> tuple[int, int]:
        return self.text.favoured(tree, tip) if self.text is not None else (-1, 0)

    def saw(self, tree: GrowingTree, places: Sequence[int]) -> None:
        self._trunk(tree).hidden.append(self.proposer.hidden[list(places)])

    def learn(self, tree: GrowingTree, checked: Checked) -> None:
        sampled = tree.sequence.params.temperature > 0
        for origin, said, tried in checked.chain:
            if origin.name == HEAD:
                self.rates[sampled].learn(origin.kind, said, tried)
            elif self.text is not None:
                self.text.rates.learn(origin.kind, said, tried)
        for origin, right in checked.others:
            rates = self.other_rates[sampled] if origin.name == HEAD else self.text_instead
            rates.learn(origin.kind, int(right), 1)

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
        if self.first_step and not pace.steps:
            pace.record_step(1, self.first_step)
        if going and self._asks(going, pace):
            self._ask(going, pace)
        return [chain.whole() for chain in chains]

    def _ask(self, going: list[Chain], pace: Pace) -> None:
        """Let the head add tokens to the chains that are `going`, as long as it pays."""
        trunks = [self._trunk(chain.tip.tree) for chain in going]
        new = [trunk.tree.sequence for trunk in trunks if trunk.read is None]
        # A prompt, or what was accepted: read once, however often the head is asked after it, and so no part of a step.
        roots = self.reader.read(new) if new else {}
        self.runner.device.finish()
        start = time.perf_counter()
        going, states, rows = self._begin(going, trunks, roots)
        depth = 0
        while going:
            self._say(going, states, depth, pace)
            now = time.perf_counter()
            if depth or rows <= FEW * len(going):
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
            trunk = self.trunks[tree.sequence.row] = Trunk(tree, lag=self.reader.lag)
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
        chance = sum(chain.chance * (self._rate(chain) + self.spared[chain.sampled].chance(0)) for chain in going)
        return pace.pays_to_ask(chance, len(going), len(going) + sum(len(chain.tokens) for chain in going))

    def _asks(self, going: Sequence[Chain], pace: Pace) -> bool:
        if self._pays(going, pace):
            return True
        self.passed_over += 1
        return self.passed_over % PROBES == 0

    def _begin(
        self, going: Sequence[Chain], trunks: Sequence[Trunk], roots: dict[int, Tensor]
    ) -> tuple[list[Chain], Tensor, int]:
        """Read what the head has not read of each chain's tree, its trunk, below the root up to the tip. `roots`: states of roots
        that were just read, by row. Returns the chains whose tip has a state, the states [n, state size], and how many nodes were
        read."""
        states = dict(roots)
        unread = []
        for chain, trunk in zip(going, trunks, strict=True):
            trunk.read = trunk.read or 0
            if chain.tip.candidate.depth > trunk.read:
                unread.append((trunk, *trunk.unread(chain.tip.candidate, self.reader.last_read(trunk.tree.sequence))))
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
        return known, torch.stack(rows) if rows else torch.empty(0), sum(len(tokens) for _, tokens, _ in unread)

    def _follow(self, going: Sequence[Chain], states: Tensor, depth: int) -> Tensor:
        """States of the last tokens of the chains, `depth` below their tips, from those of the tokens before."""
        nodes = [Nodes.of(TokenTree.chain([chain.last]), chain.tip.tree.sequence.row, chain.end) for chain in going]
        return self.runner.follow(Nodes.join(nodes), states, depth)

    def _say(self, going: Sequence[Chain], states: Tensor, depth: int, pace: Pace) -> None:
        """Add to each chain the token that the head says after it, of which it has the state."""
        logits = self.runner.scores(states, depth)
        for chain, own in zip(going, logits, strict=True):
            said = self._choose(chain, own[None])
            (token, sureness), *others = said
            kind = bisect(SURENESS, sureness)
            text = chain.text
            if text.tokens and text.tokens[0] == token:
                kind += len(BELIEVED)
            rates = self.rates[chain.sampled]
            rates.learn(-1, rates.chance(kind), 1)
            instead = self._others(chain, token, others) if self.checks_others else []
            self.spared[chain.sampled].learn(0, sum(max(chance - pace.node_share, 0.0) for _, chance, _ in instead), 1)
            chain.add(token, rates.chance(kind), Origin(HEAD, kind), instead)
            over = self.text is None or chain.over
            chain.text = NOTHING if over or self.text is None else self.text.after(chain.tip, chain.tokens)

    def _others(self, chain: Chain, token: int, said: Sequence[tuple[int, float]]) -> list[tuple[int, float, Origin]]:
        """What may be right where the head's `token` is not: what the text says, and what the head `said` next, with their
        chances."""
        found = []
        text = chain.text
        if text.tokens and text.tokens[0] != token:
            found.append((text.tokens[0], self.text_instead.chance(text.sources[0].kind), text.sources[0]))
        rates = self.other_rates[chain.sampled]
        for other, sureness in said:
            if not found or other != found[0][0]:
                kind = bisect(OTHER_SURENESS, sureness)
                found.append((other, rates.chance(kind), Origin(HEAD, kind)))
        return found

    def _choose(self, chain: Chain, logits: Tensor) -> list[tuple[int, float]]:
        """The head's token after `chain`, with the noise that the proposer chooses by, and OTHERS that it would say next, each with
        how sure it is; logits: [1, draft vocab]."""
        tree = chain.tip.tree
        tokens = self.runner.head.token_map
        adjust = Adjustment.of(tree.sequence, lambda: [[*tree.path(chain.tip.candidate), *chain.tokens]])
        if adjust is not None:
            logits = self.runner.whole(logits)
            logits = adjust(logits, 0) if tokens is None else adjust(logits, 0)[:, tokens]
        position = torch.tensor([chain.end + 1], device=logits.device)
        scores = perturb(logits, tree.sequence.params, position, tokens)[0]
        best = scores.topk(min(1 + OTHERS, len(scores)))
        chances = torch.exp(best.values - torch.logsumexp(scores, -1)).tolist()
        chosen = best.indices if tokens is None else tokens[best.indices]
        return list(zip(chosen.tolist(), chances, strict=True))

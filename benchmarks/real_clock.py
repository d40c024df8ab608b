"""What a benchmark looks at in a drafter, and a clock of its own: the same machine in every run, however busy the real one is.

The search decides by seconds how wide and how deep it drafts. Under `Costs` those seconds follow from the numbers of nodes, so that
trees, and with them tokens per pass, are the same in every run."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from understudy.drafters import Drafter, Verified
from understudy.drafters.pace import Pace
from understudy.drafters.search import SearchDrafter
from understudy.models.cost import PassCost
from understudy.sampling import likeliest
from understudy.sequence import TokenSequence
from understudy.tree import Nodes, TokenTree

# How many of a draft's best tokens are searched for the target's.
DEEPEST_RANK = 16


@dataclass(frozen=True)
class Costs:
    """What a machine takes, in seconds."""

    # A level of one node, and what each further node adds.
    level: float = 0.08
    level_node: float = 0.012
    # A pass of one node, and what each further node adds.
    sweep: float = 1.2
    sweep_node: float = 0.008
    # What the weights of a pass take to come, while arithmetic goes on.
    link: float = 0.0
    # What a head in front of the draft takes to say a token.
    step: float = 0.012

    @classmethod
    def of(cls, text: str) -> "Costs":
        """From numbers with commas between them, in the order of the fields."""
        return cls(*(float(part) for part in text.split(",")))

    def draft_level(self, width: int) -> float:
        return self.level + self.level_node * (width - 1)

    def verify(self, nodes: int) -> float:
        return max(self.sweep + self.sweep_node * (nodes - 1), self.link)


@dataclass
class FixedCost(PassCost):
    """A pass that takes what `costs` says, whatever was measured."""

    costs: Costs = field(default_factory=Costs)

    def seconds(self, nodes: int) -> float:
        return self.costs.verify(nodes)


@dataclass
class FixedPace(Pace):
    """A pace that counts the seconds of `costs` and not those of the clock."""

    costs: Costs = field(default_factory=Costs)
    # Nodes of the tree that is being verified.
    nodes: int = 1
    # Seconds of drafting since the last round, and of all rounds that read no prompt.
    drafting: float = 0.0
    total: float = 0.0

    def record_level(self, width: int, seconds: float) -> None:
        self.drafting += self.costs.draft_level(width)

    def record_step(self, texts: int, seconds: float) -> None:
        self.drafting += self.costs.step

    def step(self, texts: int) -> float:
        return self.costs.step

    def record_round(self, tokens: int, seconds: float) -> None:
        round_seconds = self.drafting + self.costs.verify(self.nodes)
        self.drafting = 0.0
        self.total += round_seconds
        super().record_round(tokens, round_seconds)

    def cost(self, width: int) -> float:
        return self.costs.draft_level(width)


@dataclass(frozen=True)
class Draft:
    """What became of one drafted tree."""

    # Nodes beside the root, and how many of them were accepted.
    drafted: int
    accepted: int
    # Had the last accepted node no children in the tree? Else all of them were wrong.
    ended: bool
    # The place of the target's token among the draft's best, from 0, after each accepted node that the draft had run;
    # DEEPEST_RANK: further down.
    ranks: tuple[int, ...]


class Ranking:
    """A proposer that remembers the best tokens after each node it ran for the one sequence under way."""

    def __init__(self, proposer: object):
        self.proposer = proposer
        self.sequence: TokenSequence | None = None
        # By cache slot: the best tokens, best first.
        self.best: dict[int, list[int]] = {}

    def __getattr__(self, name: str) -> object:
        return getattr(self.proposer, name)

    def forward(self, nodes: Nodes) -> Tensor:
        logits: Tensor = self.proposer.forward(nodes)  # type: ignore[attr-defined]
        if self.sequence is not None:
            after = nodes.positions.to(logits.device) + 1
            slots = iter(nodes.slots.tolist())
            for tokens in likeliest(logits, self.sequence.params, after, DEEPEST_RANK)[1].tolist():
                self.best[next(slots)] = tokens
        return logits


class Watched:
    """A drafter whose drafts are remembered. One sequence at a time."""

    def __init__(self, drafter: Drafter, costs: Costs | None, ranks: bool):
        self.drafter = drafter
        self.drafts: list[Draft] = []
        self.ranking: Ranking | None = None
        self.pace: FixedPace | None = None
        # The cache slot of the tree's root.
        self.first = 0
        if isinstance(drafter, SearchDrafter):
            if ranks:
                self.ranking = Ranking(drafter.proposer)
                drafter.search.proposer = self.ranking  # type: ignore[attr-defined]
            if costs is not None:
                self.pace = drafter.policy.pace = FixedPace(costs=costs)
                drafter.policy.limits = replace(
                    drafter.policy.limits, cost=FixedCost(costs=costs), filling=lambda: False
                )

    def __getattr__(self, name: str) -> Any:
        """All else that a drafter does."""
        return getattr(self.drafter, name)

    def draft(self, sequences: Sequence[TokenSequence]) -> list[TokenTree]:
        if self.ranking is not None and sequences:
            self.ranking.sequence = sequences[0]
            self.ranking.best.clear()
            self.first = len(sequences[0].tokens) - 1
        trees = self.drafter.draft(sequences)
        if self.pace is not None and trees:
            self.pace.nodes = len(trees[0])
        return trees

    def observe(self, verified: Verified) -> None:
        if verified.drafted:
            path = verified.path.tolist()
            ended = path[-1] not in verified.tree.parents.tolist()
            ranks = tuple(self._ranks(verified, path))
            self.drafts.append(Draft(len(verified.tree) - 1, len(path) - 1, ended, ranks))
        self.drafter.observe(verified)

    def _ranks(self, verified: Verified, path: Sequence[int]) -> list[int]:
        if self.ranking is None:
            return []
        found = []
        for node in path:
            best = self.ranking.best.get(self.first + node)
            if best is not None:
                token = int(verified.choices[node])
                found.append(best.index(token) if token in best else DEEPEST_RANK)
        return found

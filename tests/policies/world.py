"""A scheduler under any policy on the exact model of test_engine, whose keys are the tokens themselves: what a node sees is read
back from the cache, so a key that lies in the wrong slot changes the text."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.test_engine import Slab, following
from tests.test_scheduler import MODEL, Text, World
from understudy.drafters import Base, Drafter, Verified
from understudy.engine import Choose, Engine
from understudy.layer_states import LayerShape
from understudy.params import SamplingParams
from understudy.policies import policy_of, rows_together
from understudy.rectangle import PaddedCache
from understudy.request import Request
from understudy.scheduler import Scheduler
from understudy.sequence import TokenSequence
from understudy.stats import RequestMeter
from understudy.tree import Nodes, TokenTree

ROWS = 4
# Every policy, with as many rows as let ROWS requests be verified together.
POLICIES = {"ragged": ROWS, "eqspec": ROWS, f"exspec:batch={ROWS}": 2 * ROWS}
# What a slot that no text holds is filled with: read as a token, it changes every text.
POISON = 1e3
CAPACITY = 192


class PaddedSlab(PaddedCache):
    """`Slab` in left-padded rows; whatever lies outside of the rows' texts is poisoned before each pass."""

    def __init__(self, rows: int, capacity: int = CAPACITY, scratch: int = 24):
        super().__init__([LayerShape(1, 1, 1)], rows, capacity, torch.float32, scratch=scratch)

    def texts(self) -> list[list[int]]:
        """The keys of each row's accepted tokens."""
        keys = self.layers[0].keys
        rows = enumerate(self.lengths)
        return [keys[self.padded[0].first(row), 0, :length, 0].int().tolist() for row, length in rows]

    def poison(self) -> None:
        held = self.texts()
        for storage in self.padded[0].storages:
            storage.fill_(POISON)
        for row, text in enumerate(held):
            self.layers[0].keys[self.padded[0].first(row), 0, : len(text), 0] = torch.tensor(text, dtype=torch.float32)

    def verify(self, nodes: Nodes, wanted: Tensor, choose: Choose) -> tuple[Tensor, None]:
        self.begin_pass(nodes)
        self.poison()
        return Slab.verify(self, self.placed(nodes), wanted, choose)  # type: ignore[arg-type]


class Chains(Base):
    """Chains of `depth` tokens; `script` says, for one draft after another, how many of them are right."""

    def __init__(self, depth: int, script: Sequence[int] = ()):
        self.depth = depth
        self.script = list(script)
        # Tokens of prompts that passes have read.
        self.read = 0

    def observe(self, verified: Verified) -> None:
        self.read += 0 if verified.drafted else len(verified.tree)

    def draft(self, sequences: Sequence[TokenSequence]) -> list[TokenTree]:
        return [self._chain(sequence) for sequence in sequences]

    def _chain(self, sequence: TokenSequence) -> TokenTree:
        right = self.script.pop(0) if self.script else self.depth
        text = list(sequence.tokens)
        for level in range(min(self.depth, sequence.remaining - 1)):
            text.append((following(text) + (level >= right)) % 7)
        return TokenTree.chain(text[len(sequence.tokens) - 1 :])


class PolicyWorld(World):
    """An engine and a scheduler under `policy`; notes the rows of each pass, and those of texts that are not finished."""

    def __init__(self, policy: str, drafter: Drafter, rows: int = 0, max_nodes: int = 256):
        rows = rows or POLICIES[policy]
        chosen = policy_of(policy)
        self.padded = PaddedSlab(rows) if rows_together(chosen, rows) else None
        self.slab = self.padded or Slab(rows)  # type: ignore[assignment]
        self.pause, self.passes, self.guarded = 0.0, 0, 0
        self.fault = None
        self.batches: list[tuple[set[int], set[int]]] = []
        self.engine = Engine(self.verify, self.slab, drafter, max_nodes)
        self.scheduler = Scheduler(self.engine, rows, chosen, self.counters, self.guard)

    def verify(self, nodes: Nodes, wanted: Tensor, choose: Choose) -> tuple[Tensor, None]:
        self.batches.append((set(nodes.rows.tolist()), {sequence.row for sequence in self.engine.sequences}))
        return super().verify(nodes, wanted, choose)

    def asked(self, prompt: Sequence[int], count: int, stop_ids: Sequence[int] = ()) -> Request:
        """A request, submitted."""
        text = Text()
        sequence = TokenSequence(-1, list(prompt), SamplingParams(max_new_tokens=count), frozenset(stop_ids), text.feed)
        request = Request(sequence, text, RequestMeter(MODEL, "test", len(prompt)))  # type: ignore[arg-type]
        self.scheduler.submit(request)
        return request

    def run(self) -> None:
        while not self.scheduler.idle:
            self.scheduler.step()


def alone(prompt: Sequence[int], count: int, stop_ids: Sequence[int] = ()) -> list[int]:
    """What plain decoding gives, up to the first stop token."""
    text = list(prompt)
    while len(text) < len(prompt) + count:
        text.append(following(text))
        if text[-1] in stop_ids:
            break
    return text[len(prompt) :]

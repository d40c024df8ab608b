"""A proposer whose logits depend on every key that a node sees in the cache, and a target that is the same but for some texts: what
is read in the wrong slot, or while it is overwritten, shows in what is drafted."""

import threading
from typing import Any

import torch
from torch import Tensor

from tests.drafters.fixed import Fixed, Unaided, costing, said
from tests.fake_device import FakeDevice
from understudy.cache import Cache
from understudy.drafters.ahead import AheadSearch
from understudy.drafters.launch import DeviceTreeSearch
from understudy.drafters.policy import DraftPolicy, Limits
from understudy.drafters.search import SearchDrafter
from understudy.engine import Choose, Engine
from understudy.layer_states import LayerShape
from understudy.tree import Nodes

VOCABULARY, STATES, CAPACITY, GARBAGE = 24, 97, 512, 5000.0


class Remembering(Fixed):
    """A key tells its token. `wrong`: of so many states it mistakes one; 0: none."""

    def __init__(self, seed: int, wrong: int, rows: int = 1):
        super().__init__(seed, 1.0)
        self.table = torch.randn(STATES, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 9
        self.wrong = wrong
        self.cache = Cache([LayerShape(1, 1, 1)], rows, CAPACITY, torch.float64)
        self.weights = (torch.arange(CAPACITY, dtype=torch.float64) * 7 + 3) % 11

    def prepare(self, sequences: Any) -> list[int]:
        return [self.cache.lengths[sequence.row] for sequence in sequences]

    def forward(self, nodes: Nodes) -> Tensor:
        keys = 1 + nodes.tokens.double()[:, None, None]
        self.cache.write(0, nodes, None, keys, keys)
        return self.logits(nodes, self.wrong)

    def logits(self, nodes: Nodes, wrong: int) -> Tensor:
        """What follows from the keys that `nodes` see, each by the weight of its position."""
        held = self.cache.layers[0].keys[nodes.rows, 0, :, 0]
        place = torch.arange(CAPACITY)
        straight = (place < nodes.prefix[:, None]) & (place <= nodes.positions[:, None])
        seen = (held * self.weights * straight).sum(1)
        if nodes.tail.shape[1]:
            position = nodes.prefix[:, None] + torch.arange(nodes.tail.shape[1])
            beyond = position <= nodes.positions[:, None]
            keys = held.gather(1, nodes.tail.clamp(0, CAPACITY - 1))
            seen = seen + (keys * self.weights[position.clamp(max=CAPACITY - 1)] * beyond).sum(1)
        state = seen.long() % STATES
        logits = self.table[state]
        return torch.where((state % wrong == 0)[:, None], logits.roll(1, 1), logits) if wrong else logits


class Overwriting:
    """A target that writes garbage over its nodes' keys first. What is drafted ahead runs after that (`late`), or before."""

    def __init__(self, model: Remembering, search: DeviceTreeSearch, late: bool):
        self.model, self.search = model, search
        self.written, self.ran = threading.Event(), threading.Event()
        self.passes = self.flights = 0
        run_ahead, prepare = search.run_ahead, search.prepare
        self.flying = False

        def prepared(*given: Any) -> None:
            self.flying = True
            prepare(*given)

        def waited(origin: Any, going: Any) -> int:
            assert not late or self.written.wait(20)
            self.flights += 1
            levels = run_ahead(origin, going)
            self.ran.set()
            return levels

        search.prepare = prepared  # type: ignore[method-assign]
        search.run_ahead = waited  # type: ignore[method-assign]
        self.late = late

    def __call__(self, nodes: Nodes, wanted: Tensor, choose: Choose) -> tuple[Tensor, Tensor | None]:
        self.passes += 1
        flying, self.flying = self.flying, False
        self.model.cache.begin_pass(nodes)
        assert self.late or not flying or self.ran.wait(20)
        keys = torch.full((len(nodes), 1, 1), GARBAGE, dtype=torch.float64)
        self.model.cache.write(0, nodes, None, keys, keys)
        self.written.set()
        assert not self.late or not flying or self.ran.wait(20)
        keys = 1 + nodes.tokens.double()[:, None, None]
        self.model.cache.write(0, nodes, None, keys, keys)
        self.written.clear()
        self.ran.clear()
        return choose(self.model.logits(nodes, 0)[wanted], 0), None


def loop(
    seed: int, wrong: int, *, late: bool = True, ahead: bool = True, where: FakeDevice | None = None, rate: float = 60.0,
    nodes: int = 24,
) -> tuple[Engine, SearchDrafter, Overwriting]:  # fmt: skip
    """An engine of one row whose levels cost 1 ms. `ahead`: is there a draft ahead of every pass?"""
    model = Remembering(seed, wrong)
    policy = DraftPolicy(Limits(CAPACITY, nodes, tree=nodes), pace=costing([1e-3] * 7, rate))
    policy.pace.record_round = lambda tokens, seconds: None  # type: ignore[method-assign]
    policy.pace.first_guess = lambda *given: None  # type: ignore[method-assign]
    search = DeviceTreeSearch(model, where or Unaided(), policy, said)
    drafter = SearchDrafter(model, search, policy, ahead=AheadSearch(search, model.cache, True) if ahead else None)
    target = Overwriting(model, search, late)
    return Engine(target, model.cache, drafter), drafter, target

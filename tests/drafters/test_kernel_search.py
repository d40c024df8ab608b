"""The search in kernels gives the trees of the search in torch's operations, in few launches."""

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.drafters.fixed import CAPACITY, Fixed, Unaided, costing, device, draft, everything
from tests.drafters.test_device_search import calibrations, difference, nodes_seen, rows_of, slow_levels
from tests.fake_device import FakeDevice, without_triton
from tests.fake_graphs import FakeGraphs
from understudy.drafters.device_search import TensorSearch
from understudy.drafters.device_state import KEY, LevelShape, SearchSizes
from understudy.drafters.kernel_search import KernelSearch
from understudy.drafters.pace import RANKS
from understudy.drafters.policy import DraftPolicy, Limits, Shape
from understudy.drafters.search import SearchDrafter
from understudy.kernels.search_columns import CHILDREN, DEPTH, SPINE, THROUGH, VALID
from understudy.models.cost import PassCost
from understudy.params import SamplingParams
from understudy.plan.widths import widest
from understudy.sequence import TokenSequence
from understudy.tree import Nodes

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def apart(one: SearchDrafter, other: SearchDrafter, rows: int) -> float:
    """The largest difference of two drafts' chances, as a share."""
    states = [drafter.search.tensors.state for drafter in (one, other)]
    counts = [state["count"].tolist()[:rows] for state in states]
    assert counts[0] == counts[1]
    most = 0.0
    for row, count in enumerate(counts[0]):
        a, b = (state["node chances"][row, :count] for state in states)
        assert torch.equal(torch.isfinite(a), torch.isfinite(b))
        most = max([most, *((a - b).abs() / a.abs()).nan_to_num(0.0).flatten().tolist()])
    return most


@settings(max_examples=5)
@given(
    rows=rows_of(), seed=st.integers(0, 99), sharp=st.sampled_from([0.5, 2.0, 5.0]), rate=st.floats(0.0, 60.0),
    cost=st.lists(st.floats(1e-3, 0.05), min_size=7, max_size=7), nodes=st.sampled_from([20, 64]), free=st.booleans(),
    shape=st.sampled_from([Shape(), Shape(), Shape(1, 3), Shape(4, 3)]), each=st.floats(0, 2e-3),
)  # fmt: skip
@torch.inference_mode()
def test_drafts_are_those_of_torchs_operations(
    rows: list[TokenSequence], seed: int, sharp: float, rate: float, cost: list[float], nodes: int, free: bool, shape: Shape,
    each: float,
) -> None:  # fmt: skip
    passes = PassCost(32)
    for count in (nodes, 32, nodes):
        passes.learn(count, 0.01 + count * each, 0.0)
    limits = Limits(CAPACITY, nodes, passes, lambda: free)
    model, lengths = Fixed(seed, sharp), [17 * (1 + row.row) for row in rows]
    drafters = []
    for where in (Unaided(seed=seed), FakeDevice(seed=seed)):
        policy = DraftPolicy(limits, shape, pace=costing(cost, rate), calibrations=calibrations(seed))
        drafters.append(device(model, policy, where))
    wanted, found = (everything(drafter, draft(drafter, rows, lengths)) for drafter in drafters)
    assert not difference(found, wanted)
    if any(row.remaining > 1 for row in rows):
        kernels, torchs = (drafter.search.tensors for drafter in reversed(drafters))
        assert isinstance(kernels, KernelSearch) and not isinstance(torchs, KernelSearch)
        assert apart(*drafters, len(rows)) < 1e-12


@settings(max_examples=3)
@given(rows=rows_of(), seed=st.integers(0, 99), shape=st.sampled_from([Shape(), Shape(3, 4)]), near=st.integers(0, 40))
@torch.inference_mode()
def test_nodes_see_their_own_path_and_inert_ones_lie_in_the_spare_slot(
    rows: list[TokenSequence], seed: int, shape: Shape, near: int
) -> None:
    policy = DraftPolicy(Limits(CAPACITY, 64), shape, slow_levels())
    nodes_seen(device(Fixed(seed, 2.0), policy, FakeDevice(seed=seed)), rows, near)


@settings(max_examples=5)
@given(
    rows=st.integers(1, 4), seed=st.integers(0, 999), nodes=st.integers(1, 12), shape=st.sampled_from([Shape(), Shape(3, 5)]),
    rate=st.sampled_from([0.0, 30.0, 300.0]),
)  # fmt: skip
def test_of_equally_likely_children_the_same_are_chosen(rows: int, seed: int, nodes: int, shape: Shape, rate: float) -> None:
    """Chances are few powers of two, so that many are equal and sums are exact in any order."""
    searches = [opened_search(kind, rows, shape) for kind in (TensorSearch, partial(KernelSearch, FakeDevice().search_kernels()))]
    chance = torch.Generator().manual_seed(seed)
    count = torch.randint(1, nodes + 1, (rows,), generator=chance)
    children = torch.randint(-2, 4, (rows, nodes, RANKS), generator=chance)
    keys = torch.where(children < 0, -1.0, 2.0**-children).double()
    spine = torch.randint(1, nodes + 1, (rows, 1), generator=chance)
    keys[torch.arange(nodes) >= count[:, None]] = -1.0
    # of a chain, only what follows the last node is no node yet
    keys[:, :, 0] = torch.where(torch.arange(nodes) < spine - 1, -1.0, keys[:, :, 0])
    for search in searches:
        search.given["rate"].fill_(rate)
        search.given["cost"].copy_(0.01 + 0.001 * torch.arange(search.widest))
        state = search.state
        state["count"][:rows] = count
        state["node"][:rows, :nodes, SPINE] = (torch.arange(nodes) < spine).long()
        state["node"][:rows, :nodes, DEPTH] = torch.arange(nodes) // 3
        state["node"][:rows, :nodes, CHILDREN:] = torch.arange(rows * nodes * RANKS).view(rows, nodes, RANKS)
        state["node chances"][:rows, :nodes, THROUGH : THROUGH + RANKS] = keys
        state["node chances"][:rows, :nodes, KEY : KEY + RANKS] = keys
        state["figures"][2] = 1 + int(count.max() - 1) // 3
    torchs, kernels = searches
    (torchs._choose_forced if shape.depth else torchs._choose)(rows)
    assert isinstance(kernels, KernelSearch)
    kernels.kernels.choose(rows, min(16 * rows, 64))
    assert torch.equal(torchs.state["figures"], kernels.state["figures"])
    wish = int(torchs.state["figures"][0])
    valid = torchs.next["candidates"][VALID] > 0
    assert torch.equal(valid, kernels.next["candidates"][VALID] > 0) and int(valid[:-1].sum()) == wish
    for name in ("candidates", "chances"):
        assert torch.equal(torchs.next[name][..., :-1][..., valid[:-1]], kernels.next[name][..., :-1][..., valid[:-1]])
    if wish and not shape.depth:
        assert torch.equal(torchs.next["candidates"][:, -1], kernels.next["candidates"][:, -1])


def opened_search(kind: Any, rows: int, shape: Shape, logits: torch.Tensor | None = None) -> TensorSearch:
    """A search that has begun with `rows` roots. Its model says `logits`."""

    def forward(nodes: Nodes) -> torch.Tensor:
        assert logits is not None
        return logits

    sizes = SearchSizes(rows, CAPACITY, 8, 64, widest(shape.width or 16, shape.depth > 0, rows))
    made: TensorSearch = kind(forward, lambda nbytes: torch.zeros(nbytes, dtype=torch.uint8), shape, sizes)
    made.given["most"].fill_(99)
    made.given["nodes"].fill_(64)
    made.given["remaining"].fill_(99)
    made.given["break even"].fill_(0.1)
    made.begin(rows)
    return made


def launches(search: Any, kind: LevelShape, shape: Shape) -> list[str]:
    """What a level of this kind asks a GPU to run, with logits that are there."""
    made = opened_search(search, kind.rows, shape, torch.randn(kind.width, 40))
    return FakeGraphs().capture(lambda: made.level(kind)).launches


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("shape", [Shape(), Shape(8, 3)])
def test_the_search_of_a_level_is_five_launches(rows: int, shape: Shape) -> None:
    opened = FakeDevice().search_kernels()
    for sampled in (False, True):
        kind = LevelShape(8, rows, sampled, False)
        found = launches(partial(KernelSearch, opened), kind, shape)
        assert found == ["begin", "best", "add", "rank", "offer"] and len(found) <= 12
    found = launches(partial(KernelSearch, opened), LevelShape(8, rows, True, True), shape)
    assert found == ["begin", "outline", "cut", "best", "add", "rank", "offer"]
    assert len(launches(TensorSearch, LevelShape(8, rows, False, False), shape)) > 60


def test_without_triton_torch_searches() -> None:
    drafter = device(Fixed(0, 2.0), DraftPolicy(Limits(CAPACITY)), without_triton())
    draft(drafter, [TokenSequence(0, [1], SamplingParams(), limit=9, prompt_length=1)], [5])
    assert type(drafter.search.tensors) is TensorSearch


@torch.inference_mode()
def test_where_the_kernels_do_not_run_torch_searches_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler may refuse one of them on a real GPU, and the first level is where it does."""
    from understudy.kernels.gpu import search

    class Refused:
        arg_names = ("rows", "together")

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            def run(**given: Any) -> None:
                raise RuntimeError("PassManager::run failed\nmore")

            return run

    monkeypatch.setattr(search, "rank", Refused())
    params = SamplingParams(max_new_tokens=20, ignore_eos=True)
    rows = [TokenSequence(0, [1, 2, 3], params, frozenset(), limit=20, prompt_length=2)]
    model, heard = Fixed(3, 2.0), list[str]()
    plain = device(model, DraftPolicy(Limits(CAPACITY, 64), Shape(2, 3), slow_levels()), Unaided(seed=3))
    wanted = draft(plain, rows, [17])
    for measured in (False, True):
        drafter = device(model, DraftPolicy(Limits(CAPACITY, 64), Shape(2, 3), slow_levels()), FakeDevice(seed=3))
        drafter.search.say = heard.append
        if measured:
            assert drafter.search.measure(2) > 0
        found = draft(drafter, rows, [17])
        assert [tree.tokens.tolist() for tree in found] == [tree.tokens.tolist() for tree in wanted] and len(wanted[0]) > 3
        assert not isinstance(drafter.search.tensors, KernelSearch)
    assert len(heard) == 2 and "search's kernels" in heard[0] and "slower" in heard[0] and "\n" not in heard[0]

"""What the text suggests is checked in the first level of a draft on a device: a draft says the same as without, in fewer levels,
and what it would not have said leaves no trace."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.drafters.fixed import CAPACITY, VOCABULARY, Fixed, Unaided, costing, draft, everything, said
from tests.drafters.test_device_search import calibrations, difference, rows_of
from tests.drafters.test_head_suggest import STEP, Costly, HeadWorld
from tests.drafters.world import COSTS, Steady, World, run
from tests.fake_device import FakeDevice
from understudy.drafters.device_guesses import agreed, give_guesses
from understudy.drafters.device_state import KEY, SearchSizes
from understudy.drafters.growing_tree import GrowingTree
from understudy.drafters.head_suggest import HEAD, HeadSuggester
from understudy.drafters.launch import DeviceTreeSearch
from understudy.drafters.pace import Pace
from understudy.drafters.packed_tensors import PackedTensors
from understudy.drafters.policy import NO_SHAPE, DraftPolicy, Limits
from understudy.drafters.proposer import ModelProposer
from understudy.drafters.search import SearchDrafter
from understudy.drafters.suggest import NOTHING, TEXT, Checked, Origin, Suggestion, TextSuggester, Tip
from understudy.params import SamplingParams
from understudy.sequence import TokenSequence

pytest.importorskip("triton")


class DeviceWorld(World):
    """The world with a search on a device, whose draft no text speaks for. `guesser` says chains."""

    def __init__(self, rows: int, period: int, misses: int, guesser: TextSuggester | None, where: FakeDevice):
        super().__init__(rows, period, misses, None)
        self.guesser = guesser
        policy = DraftPolicy(Limits(320, 60), NO_SHAPE, Steady(dict(COSTS), rate=20.0))
        search = DeviceTreeSearch(ModelProposer(self), where, policy, said, suggester=guesser)
        # its draft asks for values
        search.recording = False
        self.drafter = SearchDrafter(search.proposer, search, policy)


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=9), min_size=1, max_size=3), st.integers(1, 40), st.integers(1, 6),
    st.integers(1, 40), st.frozensets(st.integers(0, 6), max_size=1),
)  # fmt: skip
@torch.inference_mode()
def test_guesses_change_no_token_and_no_node(
    prompts: list[list[int]], count: int, period: int, misses: int, stop: frozenset[int]
) -> None:
    """Each node is what the draft says after its own text, which it reads where the slots say; no node is there twice."""
    run(DeviceWorld(len(prompts), period, misses, TextSuggester(), Unaided()), prompts, count, stop)


class DeviceHeadWorld(HeadWorld):
    """The world of hidden states with a search on a device, and a head that says what its first levels check."""

    def __init__(self, rows: int, wrong: int, asks: bool = True):
        super().__init__(rows, wrong, asks=asks)
        self.drafter.proposer.device = self.device = Unaided()  # type: ignore[assignment]
        if asks:
            self.suggester = HeadSuggester(self.drafter.proposer, None)  # type: ignore[arg-type]
        pace = Costly(dict(COSTS), {1: STEP}, rate=20.0)
        policy = DraftPolicy(Limits(320, 60), NO_SHAPE, pace)
        search = DeviceTreeSearch(self.drafter.proposer, self.device, policy, said, suggester=self.suggester)
        # its draft asks for values
        search.recording = False
        self.drafter = SearchDrafter(search.proposer, search, policy)


@settings(max_examples=6)
@given(st.integers(2, 12), st.integers(1, 3))
@torch.inference_mode()
def test_a_head_changes_no_token_and_no_node(wrong: int, rows: int) -> None:
    run(DeviceHeadWorld(rows, wrong), [[1, 2, 3], [4, 4], [5, 5, 1]][:rows], 40)


@torch.inference_mode()
def test_a_head_saves_levels_and_is_asked_for_no_others() -> None:
    found = []
    for asks in (True, False):
        world = DeviceHeadWorld(2, 30, asks)
        drawn = run_noting_trees(world, [[1, 2, 3], [4]])
        found.append((world.levels, world.passes, sum(tree.agreed[HEAD] for tree in drawn)))
        if asks:
            assert isinstance(world.suggester, HeadSuggester)
            assert max(world.suggester.rates[False].tried) > 30
            assert world.suggester.spared[False].chance(0) < 0.01, "a level here takes chains alone"
    (helped, passes, agreed), (alone, passes_alone, none) = found
    assert agreed > 60 and none == 0 and helped < 0.8 * alone and passes <= passes_alone


@pytest.mark.parametrize("rows", [1, 2])
@torch.inference_mode()
def test_guesses_save_levels(rows: int) -> None:
    worlds = [DeviceWorld(rows, 4, 30, guesser, Unaided()) for guesser in (TextSuggester(), None)]
    counts = []
    for world in worlds:
        drawn = run_noting_trees(world, [[1, 2, 3], [4]][:rows])
        counts.append((sum(tree.agreed[TEXT] for tree in drawn), sum(tree.suggested[TEXT] for tree in drawn)))
    guessed, plain = worlds
    # This world has a surprise every eleven tokens, and only the first level of a draft checks what the text says.
    assert 8 <= counts[0][0] <= counts[0][1] and counts[1] == (0, 0)
    assert guessed.levels < plain.levels and guessed.passes <= plain.passes
    assert guessed.guesser is not None and guessed.guesser.rates != TextSuggester().rates


def run_noting_trees(world: World, prompts: list[list[int]]) -> list[GrowingTree]:
    """The trees that were drafted for texts of 120 tokens."""
    drawn: list[GrowingTree] = []
    learn = world.drafter.policy.learn

    def noted(tree: GrowingTree, *more: Any) -> None:
        drawn.append(tree)
        learn(tree, *more)

    world.drafter.policy.learn = noted  # type: ignore[method-assign]
    run(world, prompts, 120)
    return drawn


class Foretelling:
    """Says what `model` will say, greedily, but for every token whose place in the chain is in `wrong`."""

    def __init__(self, model: Fixed, wrong: frozenset[int], length: int):
        self.model, self.wrong, self.length = model, wrong, length
        self.told: list[Checked] = []

    def suggest(self, tips: Sequence[Tip], pace: Pace) -> list[Suggestion]:
        return [self._after(tip) for tip in tips]

    def _after(self, tip: Tip) -> Suggestion:
        tokens: list[int] = []
        last = tip.tree.tokens[0]
        for i in range(self.length):
            last = int(self.model.table[(tip.tree.length + i) % 8, last].argmax())
            last = (last + 1) % VOCABULARY if i in self.wrong else last
            if last in tip.tree.sequence.stop_ids:
                break
            tokens.append(last)
        return Suggestion(tokens, [0.97 ** (i + 1) for i in range(len(tokens))], [Origin(TEXT, 1)] * len(tokens))

    def learn(self, tree: GrowingTree, checked: Checked) -> None:
        self.told.append(checked)


@settings(max_examples=6)
@given(
    rows=rows_of(), seed=st.integers(0, 99), rate=st.floats(0.0, 30.0), wrong=st.frozensets(st.integers(0, 9), max_size=2),
    length=st.integers(1, 40), nodes=st.sampled_from([20, 64]),
)  # fmt: skip
@torch.inference_mode()
def test_kernels_check_guesses_as_torchs_operations_do(
    rows: list[TokenSequence], seed: int, rate: float, wrong: frozenset[int], length: int, nodes: int
) -> None:
    """Levels are recorded and replayed, of sampled, filtered and biased texts too, and each node sees its own path."""
    found = []
    for where in (Unaided(seed=seed), FakeDevice(seed=seed)):
        model = Fixed(seed, 3.0)
        pace = costing([0.01, 0.011, 0.012, 0.013, 0.014, 0.02, 0.03], rate)
        policy = DraftPolicy(Limits(CAPACITY, nodes), pace=pace, calibrations=calibrations(seed))
        guesser = Foretelling(model, wrong, length)
        search = DeviceTreeSearch(model, where, policy, said, suggester=guesser)  # type: ignore[arg-type]
        drafter = SearchDrafter(model, search, policy)
        trees = [everything(drafter, draft(drafter, rows, [17 * (1 + row.row) for row in rows])) for _ in range(2)]
        states = search.tensors.state if search.tensors is not None else None
        found.append((trees, guesser.told, states, search))
    (wanted, told, there, torchs), (trees, ours, here, kernels) = found
    assert not difference(trees[0], wanted[0]) and not difference(trees[1], wanted[1])
    assert [checked.agreed for checked in ours] == [checked.agreed for checked in told]
    if told:
        assert any(kind.guessed for kind in kernels.graphs) and any(kind.guessed for kind in torchs.graphs)
        assert there is not None and here is not None
        for row, count in enumerate(there["count"].tolist()[: len(rows)]):
            a, b = (state["node chances"][row, :count, :KEY] for state in (there, here))
            torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


@torch.inference_mode()
def test_what_is_right_is_taken_at_once_and_what_is_wrong_leaves_no_trace() -> None:
    params = SamplingParams(max_new_tokens=60, ignore_eos=True)
    row = [TokenSequence(0, [3], params, frozenset(), limit=60, prompt_length=1)]
    levels, sizes = [], []
    for wrong in (frozenset[int](), frozenset([4]), frozenset([0]), None):
        model = Fixed(5, 6.0)
        guesser = None if wrong is None else Foretelling(model, wrong, 40)
        policy = DraftPolicy(Limits(CAPACITY, 64), pace=costing([0.01] * 7, 9.0))
        search = DeviceTreeSearch(model, FakeDevice(), policy, said, suggester=guesser)  # type: ignore[arg-type]
        drafter = SearchDrafter(model, search, policy)
        (tree,) = draft(drafter, row, [17])
        chain, at = [], 0
        while (after := tree.child(at, int(model.table[(17 + len(chain)) % 8, int(tree.tokens[at])].argmax()))) < len(tree):
            chain.append(at := after)
        levels.append(tree.counts.levels)
        sizes.append(len(chain))
        if guesser is not None:
            (told,) = guesser.told
            assert len(told.suggestion.tokens) == 40 and told.agreed == min([*guesser.wrong, 40])
            assert tree.counts.agreed.get(TEXT, 0) == told.agreed and chain[: told.agreed] == list(range(1, told.agreed + 1))
            first = [kind for kind in search.graphs if kind.guessed]
            assert [kind.width for kind in first] == [64] and "agree" in search.graphs[first[0]].launches  # type: ignore[attr-defined]
            assert not any("agree" in graph.launches for kind, graph in search.graphs.items() if not kind.guessed)  # type: ignore[attr-defined]
    assert min(sizes) > 8 and levels[0] <= 0.5 * levels[3] and levels[1] < levels[3] and levels[2] == levels[3]


def test_without_a_match_a_draft_is_given_and_runs_what_it_would_without_guesses() -> None:
    launches = []
    for suggester in (TextSuggester(), None):
        model = Fixed(5, 6.0)
        policy = DraftPolicy(Limits(CAPACITY, 64), pace=costing([0.01] * 7, 9.0))
        search = DeviceTreeSearch(model, FakeDevice(), policy, said, suggester=suggester)
        drafter = SearchDrafter(model, search, policy)
        draft(drafter, [TokenSequence(0, [1, 2, 3], limit=30, prompt_length=3)], [17])
        launches.append([(kind, graph.launches) for kind, graph in search.graphs.items()])  # type: ignore[attr-defined]
    assert launches[0] == launches[1] and launches[0]


def test_chains_are_handed_over_by_place_token_and_depth() -> None:
    given = PackedTensors.of(*SearchSizes(3, 90, 2, 64, 8).given(), lambda nbytes: torch.zeros(nbytes, dtype=torch.uint8))
    assert give_guesses(given, [NOTHING, NOTHING]) == 0
    assert give_guesses(given, [Suggestion([7, 8]), NOTHING, Suggestion([9])]) == 3
    assert given["guess"][:, :3].tolist() == [[0, 0, 2], [7, 8, 9], [1, 2, 1]]


def test_of_a_chain_the_first_choices_one_after_another_were_right() -> None:
    tree = GrowingTree(TokenSequence(0, [1]), 5, [1, 4, 5, 6], [-1, 0, 1, 2])
    tree.children = {0: ([1.0], [4]), 1: ([1.0, 0.5], [5, 2]), 2: ([1.0, 0.5], [2, 6]), 3: ([], [])}
    assert [agreed(tree, tokens) for tokens in ([4, 5, 6], [4, 5, 2, 6], [4, 2], [9], [])] == [2, 3, 1, 0, 0]

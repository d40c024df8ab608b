"""What a drafter that searches trees asks for, and how its parts work together."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.drafters.fixed import CAPACITY, Fixed, draft
from tests.drafters.world import World, run
from understudy.drafters import Verified, spec_of
from understudy.drafters.growing_tree import MOST_NODES
from understudy.drafters.pace import WIDEST
from understudy.drafters.policy import DraftPolicy, Limits, Shape
from understudy.drafters.proposer import ModelProposer
from understudy.drafters.search import MEASURED_WIDTHS, SearchDrafter, SearchSpec
from understudy.drafters.suggest import TextSuggester
from understudy.drafters.tree_search import TreeSearch
from understudy.errors import UsageError
from understudy.sequence import TokenSequence
from understudy.tree import TokenTree


def drafter(shape: Shape) -> SearchDrafter:
    model, policy = Fixed(1, 3.0), DraftPolicy(Limits(CAPACITY, 128), shape)
    return SearchDrafter(model, TreeSearch(model, policy), policy)


@given(st.integers(0, 400), st.integers(0, 400))
def test_a_forced_shape_says_how_large_its_trees_can_be(width: int, depth: int) -> None:
    method = f"substitute:width={width},depth={depth}"
    if bool(width) != bool(depth):
        with pytest.raises(UsageError, match=f"needs both width and depth, 1 or more; got width={width}, depth={depth}"):
            spec_of(method)
        return
    spec = spec_of(method)
    assert spec.forced == (depth > 0)
    assert spec.level_width == (min(width, MOST_NODES) if depth else WIDEST)
    assert spec.max_nodes == (min(1 + width * depth, MOST_NODES) if depth else 0)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("substitute:guess=of", "Did you mean 'off'"),
        ("substitute:width=2,depth=2,guess=on", "guess=on makes no sense with a forced width and depth"),
        ("substitute:width=-1,depth=-1", "got width=-1, depth=-1"),
        ("substitute:2", "should be key=value. Known keys: width, depth, guess, suggest, suggest_bits, ahead."),
        ("substitute:depth=two", "depth must be int, got 'two'"),
    ],
)
def test_options_that_make_no_sense_are_named(method: str, words: str) -> None:
    with pytest.raises(UsageError) as refusal:
        spec_of(method)
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("method", "suggests"), [("substitute", True), ("substitute:guess=off", False), ("substitute:width=2,depth=3", False)]
)
def test_the_text_suggests_unless_it_is_told_not_to(method: str, suggests: bool) -> None:
    spec = spec_of(method)
    assert isinstance(spec, SearchSpec)
    assert isinstance(spec.suggester(ModelProposer(World(1, 4, 30, None))), TextSuggester) == suggests


def test_a_forced_shape_takes_nothing_from_the_text() -> None:
    world = World(1, 4, 30, None, Shape(2, 5))
    run(world, [[1, 2, 3]], 40)
    assert world.levels >= 5 * (world.passes - 2)


def test_a_proposer_is_told_which_nodes_of_its_tree_it_ran_and_of_prompts_none() -> None:
    searching = drafter(Shape(2, 3))
    sequence = TokenSequence(1, [3, 4], limit=9, prompt_length=2)
    chunk = TokenTree.chain([3])
    before = searching.policy.calibrations[False].seen
    searching.observe(Verified(sequence, chunk, torch.tensor([0]), torch.empty(0), drafted=False))
    assert searching.policy.calibrations[False].seen == before, "a prompt says nothing of drafts"
    (tree,) = draft(searching, [sequence], [1])
    searching.observe(Verified(sequence, tree, torch.tensor([0]), tree.tokens, drafted=True))
    assert searching.policy.calibrations[False].seen == before + 1
    (first, ran_first), (second, ran) = searching.proposer.observed  # type: ignore[attr-defined]
    assert first.tree is chunk and not ran_first
    assert second.tree is tree and set(ran) == set(range(1 + 2 * 2)), "the last level rides along and was not run"


def test_warming_measures_a_few_widths() -> None:
    searching = drafter(Shape())
    searching.warm(seconds=60.0)
    assert sorted(searching.policy.pace.levels) == list(MEASURED_WIDTHS)
    model = searching.proposer
    assert isinstance(model, Fixed) and [len(nodes) for nodes in model.ran] == [w for w in MEASURED_WIDTHS for _ in range(3)]
    assert all(int(row) == 0 for nodes in model.ran for row in nodes.rows), "row 0 is empty then"

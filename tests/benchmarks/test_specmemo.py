"""SpecMemo's figures follow from the gather, and evaluating accepted nodes alone has none of it."""

import pytest

import specmemo


@pytest.mark.parametrize("tree", specmemo.TREES, ids=lambda tree: tree.name)
def test_the_gather_is_what_the_paper_measured(tree: specmemo.Tree) -> None:
    assert tree.gathered(specmemo.VICUNA.vocabulary) == pytest.approx(specmemo.PAPER[tree.name], rel=0.03)
    gathered, accepted = specmemo.measured(tree, specmemo.TINY.vocabulary)
    assert gathered == tree.gathered(specmemo.TINY.vocabulary) and accepted == tree.accepted(specmemo.TINY.vocabulary)
    assert accepted * tree.leaves * (tree.depth + 1) == gathered


def test_planned_queries_are_more_than_any_fixed_split_holds() -> None:
    wide = specmemo.TREES[0]
    planned = specmemo.queries(specmemo.VICUNA, wide, gathers=False)
    assert planned > max(specmemo.queries(specmemo.VICUNA, wide, True, split) for split in specmemo.SPLITS) > 0
    # With the gather on both sides, planning alone gives less, but more than a fixed split still.
    alike = specmemo.queries(specmemo.VICUNA, wide, gathers=True)
    assert planned > alike > max(specmemo.queries(specmemo.VICUNA, wide, True, split) for split in specmemo.SPLITS)

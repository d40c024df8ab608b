"""Plain decoding is a tree of one node, for which nothing is held."""

from understudy.drafters import PLAIN_METHOD, spec_of
from understudy.drafters.none import NoDraft
from understudy.sequence import TokenSequence


def test_every_tree_is_its_root() -> None:
    trees = NoDraft().draft([TokenSequence(0, [4, 5], limit=9), TokenSequence(1, [6], limit=9)])
    assert [(tree.tokens.tolist(), tree.parents.tolist()) for tree in trees] == [([5], [-1]), ([6], [-1])]


def test_nothing_is_held_for_it() -> None:
    spec = spec_of(PLAIN_METHOD)
    assert (spec.max_nodes, spec.level_width, spec.holds_substitute, spec.second_model, spec.taps) == (1, 0, False, None, ())

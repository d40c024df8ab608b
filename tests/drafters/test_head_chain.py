"""What a head suggests after a tip, and what it has still to read of a tree."""

import pytest
import torch

from understudy.drafters.growing_tree import Candidate, GrowingTree
from understudy.drafters.head_chain import Chain, Trunk
from understudy.drafters.suggest import NOTHING, Origin, Suggestion, Tip
from understudy.sequence import TokenSequence

HEAD, TEXT = Origin("head", 1), Origin("text", 3)
STOP = 9


def chain(text: Suggestion = NOTHING, most: int = 5) -> Chain:
    sequence = TokenSequence(0, [7, 8], limit=9, prompt_length=1, stop_ids=frozenset({STOP}))
    return Chain(Tip(GrowingTree(sequence, 1, [8]), Candidate(1.0, -1, 8, 0, True), most), text)


def test_others_have_the_chance_of_the_tokens_before_them_and_their_own() -> None:
    one = chain()
    one.add(3, 0.5, HEAD, [(4, 0.2, HEAD), (STOP, 0.1, HEAD)])
    one.add(5, 0.5, HEAD, [(6, 0.9, TEXT)])
    whole = one.whole()
    assert (whole.tokens, whole.chances, whole.sources) == ([3, 5], [0.5, 0.25], [HEAD, HEAD])
    assert [(other.after, other.token, other.origin) for other in whole.others] == [(1, 6, TEXT), (0, 4, HEAD)], "likeliest first"
    assert [other.chance for other in whole.others] == pytest.approx([0.45, 0.2])
    assert one.end == 3 and one.last == 5 and not one.over


def test_what_the_text_says_comes_after_the_heads_tokens() -> None:
    one = chain(Suggestion([2, 2], [0.8, 0.6], [TEXT] * 2))
    one.add(3, 0.5, HEAD, [])
    assert one.whole().tokens == [3, 2, 2] and one.whole().chances == pytest.approx([0.5, 0.4, 0.3])


def test_a_token_that_ends_the_text_is_not_suggested_and_others_in_its_place_are() -> None:
    one = chain()
    one.add(3, 0.5, HEAD, [])
    one.add(STOP, 0.5, HEAD, [(6, 0.3, HEAD)])
    assert one.over and one.whole().tokens == [3]
    assert [(other.after, other.token) for other in one.whole().others] == [(1, 6)]


def test_a_trunk_gives_the_tokens_that_were_not_read_with_the_states_before_them() -> None:
    tree = chain().tip.tree
    tree.tokens, tree.parents = [8, 3, 4, 5], [-1, 0, 1, 2]
    trunk = Trunk(tree, [torch.arange(2.0)[:, None, None], torch.arange(2.0, 4.0)[:, None, None]], read=1)
    tokens, hidden = trunk.unread(Candidate(0.5, 3, 6, 4, True), ([], torch.empty(0, 1, 1)))
    assert tokens == [4, 5, 6] and hidden.flatten().tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(("read", "before", "expected"), [
    (0, 2, [7, 8, 3, 4, 5, 6]), (1, 2, [8, 3, 4, 5, 6]), (2, 2, [3, 4, 5, 6]), (0, 1, [8, 3, 4, 5, 6]), (2, 1, [3, 4, 5, 6]),
])  # fmt: skip
def test_a_head_that_lags_is_given_tokens_again_that_it_has_read(read: int, before: int, expected: list[int]) -> None:
    tree = chain().tip.tree
    tree.tokens, tree.parents = [8, 3, 4, 5], [-1, 0, 1, 2]
    trunk = Trunk(tree, [torch.arange(8.0, 12.0)[:, None, None]], read=read, lag=2)
    lead = [7, 8][2 - before :], torch.tensor([6.0, 7.0])[2 - before :, None, None]
    tokens, hidden = trunk.unread(Candidate(0.5, 3, 6, 4, True), lead)
    assert tokens == expected and hidden.flatten().tolist() == [12.0 - len(tokens) + i for i in range(len(tokens))]

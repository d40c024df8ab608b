"""A batch hands every logit to the sequence it belongs to, whatever pieces they come in."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from understudy.batch import Batch, Member
from understudy.params import SamplingParams
from understudy.sampling import Draws, choose, offset
from understudy.sequence import TokenSequence
from understudy.tree import TokenTree

VOCABULARY = 11


@st.composite
def members(draw: st.DrawFn) -> list[Member]:
    made = []
    for row in range(draw(st.integers(1, 5))):
        params = SamplingParams(
            temperature=draw(st.sampled_from([0.0, 0.7])), seed=draw(st.integers(0, 99)), top_k=draw(st.sampled_from([0, 0, 3])),
            top_p=draw(st.sampled_from([1.0, 0.5])), min_p=draw(st.sampled_from([0.0, 0.0, 0.1])),
        )  # fmt: skip
        sequence = TokenSequence(row, [0], params)
        tokens = draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9))
        if draw(st.booleans()):
            parents = [-1, *(draw(st.integers(0, i)) for i in range(len(tokens) - 1))]
            made.append(Member.draft(sequence, TokenTree.of(tokens, parents)))
        else:
            made.append(Member.chunk(sequence, tokens, draw(st.booleans())))
    return made


@given(members(), st.integers(1, 7), st.lists(st.integers(0, 40), min_size=5, max_size=5), st.integers(0, 1000))
@settings(deadline=None)
def test_choices_are_those_of_each_sequence_alone(made: list[Member], piece: int, lengths: list[int], seed: int) -> None:
    batch = Batch.of(made, lengths)
    assert len(batch.nodes) == sum(len(member.tree) for member in made)
    logits = torch.randn(len(batch.wanted), VOCABULARY, generator=torch.Generator().manual_seed(seed))
    pieces = [batch.choose(logits[at : at + piece], at) for at in range(0, len(logits), piece)]
    split = batch.split(torch.cat(pieces) if pieces else torch.empty(0))
    at = node = 0
    for member, (same, choices) in zip(made, split, strict=True):
        assert same is member and len(choices) == member.wanted
        wanted = range(node + len(member.tree) - member.wanted, node + len(member.tree))
        assert batch.wanted[at : at + member.wanted].tolist() == list(wanted)
        if member.wanted:
            depths = member.tree.depths[len(member.tree) - member.wanted :]
            after = lengths[member.sequence.row] + depths + 1
            assert choices.equal(choose(logits[at : at + member.wanted], member.sequence.params, after))
        at += member.wanted
        node += len(member.tree)


class Chooser:
    """Chooses as torch does, row by row; `asked`: how many rows each time."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, logits: Tensor, draws: Draws) -> Tensor:
        self.asked.append(len(logits))
        found = []
        for i, row in enumerate(logits):
            own = {name: numbers[i].item() for name, numbers in draws.items()}
            position = torch.tensor([own.pop("key") - offset(0)])
            found.append(choose(row[None], SamplingParams(**own, seed=0), position))
        return torch.cat(found)


@given(members(), st.integers(0, 1000), st.booleans())
@settings(deadline=None)
def test_a_device_chooses_for_all_at_once_where_nothing_is_biased(made: list[Member], seed: int, mixed: bool) -> None:
    if mixed:
        for params in (SamplingParams(logit_bias={1: 2.0}, seed=3), SamplingParams(logit_bias={2: 3.0}, seed=5)):
            made.append(Member.draft(TokenSequence(len(made), [0], params), TokenTree.of([1, 2, 3], [-1, 0, 0])))
    lengths, chooser = [4] * len(made), Chooser()
    own, batch = Batch.of(made, lengths), Batch.of(made, lengths, chooser)
    if not len(batch.wanted):
        return
    logits = torch.randn(len(batch.wanted), VOCABULARY, generator=torch.Generator().manual_seed(seed))
    found = batch.choose(logits, 0)
    assert torch.equal(found, own.choose(logits, 0))
    assert sum(chooser.asked) == len(logits) and (len(chooser.asked) == 1) == (not mixed)


def test_a_chunk_in_the_middle_of_a_prompt_wants_nothing() -> None:
    sequence = TokenSequence(0, [1, 2, 3])
    batch = Batch.of([Member.chunk(sequence, [1, 2], last=False)], [0])
    ((member, choices),) = batch.split(torch.empty(0))
    assert not len(batch.wanted) and member.reads and choices.tolist() == []


@given(members(), st.booleans())
def test_hidden_states_go_to_the_nodes_they_are_of(made: list[Member], there: bool) -> None:
    sizes = [len(member.tree) for member in made]
    batch = Batch.of(made, [0] * 5)
    hidden = torch.arange(sum(sizes)).view(-1, 1, 1).expand(-1, 2, 3) if there else None
    split = batch.split_hidden(hidden)
    assert [None if part is None else part[:, 0, 0].tolist() for part in split] == [
        list(range(sum(sizes[:i]), sum(sizes[: i + 1]))) if there else None for i in range(len(made))
    ]

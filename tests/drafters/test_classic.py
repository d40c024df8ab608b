"""A second model keeps a cache of its own in step with the text, and is told which nodes it had run."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from understudy.cache import Cache
from understudy.devices.processor import Processor
from understudy.drafters import Verified, spec_of
from understudy.drafters.classic import CATCH_UP, SecondModelProposer
from understudy.layer_states import LayerShape
from understudy.sequence import TokenSequence
from understudy.tree import Nodes, TokenTree


class Second:
    """A second model whose keys are the tokens it ran."""

    def __init__(self) -> None:
        self.device = Processor()
        self.cache = Cache([LayerShape(1, 1, 1)], 2, 400, torch.float32)
        self.widest = 0

    def draft(self, nodes: Nodes) -> Tensor:
        self.widest = max(self.widest, len(nodes))
        self.cache.layers[0].write(nodes, nodes.tokens.float()[:, None, None], torch.zeros(len(nodes), 1, 1))
        return torch.zeros(len(nodes), 8)

    def read(self, row: int) -> list[int]:
        return [int(token) for token in self.cache.layers[0].keys[row, 0, : self.cache.lengths[row], 0]]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3 * CATCH_UP), st.lists(st.integers(0, 3), max_size=5), st.integers(0, 4), st.data())
def test_its_cache_holds_the_text_but_for_the_last_token_whatever_it_had_run(
    prompt: int, accepted: list[int], drafted: int, data: st.DataObject
) -> None:
    model = Second()
    proposer = SecondModelProposer(model)
    sequence = TokenSequence(1, [i % 7 for i in range(prompt)], limit=50, prompt_length=prompt)
    assert proposer.prepare([sequence]) == [prompt - 1]
    assert model.read(1) == sequence.tokens[:-1] and model.widest <= CATCH_UP
    tree = TokenTree.chain([sequence.tokens[-1], *accepted])
    proposer.forward(Nodes.of(tree, 1, prompt - 1)[: drafted + 1])
    path = torch.arange(data.draw(st.integers(1, len(tree))))
    proposer.observe(Verified(sequence, tree, path, tree.tokens, drafted=True), range(min(drafted + 1, len(tree))))
    sequence.tokens += [*accepted[: len(path) - 1], 5]
    assert proposer.prepare([sequence]) == [len(sequence.tokens) - 1]
    assert model.read(1) == sequence.tokens[:-1]
    back = data.draw(st.integers(0, len(sequence.tokens) + 3))
    proposer.rewind(sequence, back)
    assert model.cache.lengths[1] == min(back, len(sequence.tokens) - 1)


def test_a_chunk_of_a_prompt_is_no_draft_of_its_own() -> None:
    model = Second()
    sequence = TokenSequence(0, [1, 2, 3])
    chunk = TokenTree.chain([1, 2])
    SecondModelProposer(model).observe(Verified(sequence, chunk, torch.arange(2), torch.empty(0), drafted=False), ())
    assert model.cache.lengths == [0, 0]


@pytest.mark.parametrize(("method", "second"), [("classic:/some/model,width=2,depth=3", "/some/model"), ("classic", "")])
def test_its_spec_names_the_second_model_and_holds_no_substitute(method: str, second: str) -> None:
    spec = spec_of(method)
    assert spec.second_model == second and not spec.holds_substitute


def test_it_proposes_with_the_second_model() -> None:
    second = Second()
    target = SimpleNamespace(companion=second)
    proposer = spec_of("classic:/some/model").proposer(target)  # type: ignore[attr-defined]
    assert isinstance(proposer, SecondModelProposer) and proposer.cache is second.cache

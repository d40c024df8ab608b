"""bfloat16 to the bit: an accepted node's logits do not depend on how many nodes a pass has, on siblings, or on how it came."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.tiny import save
from understudy import LLM, cache, compressed, layer_states
from understudy.models.model import Model
from understudy.tree import Nodes, TokenTree
from understudy.verify import accept

TEXT = [(i * i * 7 + i // 3) % 251 for i in range(150)]


FAMILIES = ["llama", "gemma3_text", "gemma3_text sliding", "gemma4_text", "gemma4-e sliding", "deepseek_v4", "deepseek_v4 sliding"]
# What layers keep in a family whose layers do not hold all tokens; others have some that do.
COMPRESSING = {"deepseek_v4": compressed.CompressedState}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    family, _, sliding = request.param.partition(" ")
    path: Path = tmp_path_factory.mktemp("bits")
    save(path, family, torch.bfloat16, hidden_size=192, intermediate_size=320)
    with pytest.MonkeyPatch.context() as patch:
        if sliding:  # so little room that the text does not fit in a layer that slides
            for module in (cache, layer_states):
                patch.setattr(module, "SCRATCH", 64)
            patch.setattr(layer_states, "GOING_BACK", 0)
        with LLM(path, resident="none", memory="1GiB", context=256, rows=2) as llm:
            kinds = {type(layer) for layer in llm.model.cache.layers}
            usual = COMPRESSING.get(family, layer_states.FullState)
            assert kinds == {usual, layer_states.SlidingState if sliding else layer_states.FullState}
            yield llm.model


def one_by_one(model: Model, tokens: list[int], row: int = 0) -> Tensor:
    """Logits [n, vocab] of plain decoding, a pass for each token."""
    model.cache.rewind(row, 0)
    out = []
    for token in tokens:
        nodes = Nodes.of(TokenTree.chain([token]), row, model.cache.lengths[row])
        out.append(model.target(nodes, torch.tensor([0])))
        model.cache.keep(row, torch.tensor([0]))
    return torch.cat(out)


@pytest.fixture(scope="module")
def plain(model: Model) -> Tensor:
    with torch.inference_mode():
        return one_by_one(model, TEXT)


@torch.inference_mode()
def test_a_prompt_read_at_once_has_the_bits_of_plain_decoding(model: Model, plain: Tensor) -> None:
    model.cache.rewind(0, 0)
    before = model.supply.bytes_used
    at_once = model.target(Nodes.of(TokenTree.chain(TEXT), 0, 0), torch.arange(len(TEXT)))
    assert torch.equal(at_once, plain)
    assert model.supply.bytes_used - before == model.plan.streamed_bytes, "a prompt of five tiles takes one sweep of the weights"


@st.composite
def rounds(draw: st.DrawFn) -> list[tuple[int, list[tuple[int, int]]]]:
    """For each round: how many true tokens the tree holds, and other nodes (parent, token) mixed in."""
    found = []
    for _ in range(draw(st.integers(2, 5))):
        true = draw(st.integers(1, 24))
        others = draw(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 250)), max_size=30))
        found.append((true, others))
    return found


def tree_with(true: list[int], others: list[tuple[int, int]]) -> TokenTree:
    """The chain `true` and other nodes, interleaved, so that accepted nodes do not lie in position order."""
    tokens, parents, tip = [true[0]], [-1], 0
    waiting = true[1:]
    for place, token in others:
        parent = place % len(tokens)
        if token % 3 and waiting:
            tokens.append(waiting.pop(0))
            parents.append(tip)
            tip = len(tokens) - 1
        taken = {tokens[i] for i in range(len(tokens)) if parents[i] == parent} | set(waiting[:1] if parent == tip else ())
        if token not in taken:
            tokens.append(token)
            parents.append(parent)
    for token in waiting:
        tokens.append(token)
        parents.append(tip)
        tip = len(tokens) - 1
    return TokenTree.of(tokens, parents)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds=rounds(), poison=st.booleans(), data=st.data())
@torch.inference_mode()
def test_random_trees_have_the_bits_of_plain_decoding(
    model: Model, plain: Tensor, rounds: list[tuple[int, list[tuple[int, int]]]], poison: bool, data: st.DataObject
) -> None:
    row = data.draw(st.integers(0, 1))
    model.cache.rewind(row, 0)
    if poison:
        for layer in model.cache.layers:
            layer.keys[row] = torch.nan
            layer.values[row] = torch.nan
    at, other_row = 0, 1 - row
    for true, others in rounds:
        chain = TEXT[at : at + true]
        if not chain:
            break
        tree = tree_with(chain, others)
        mine = Nodes.of(tree, row, at)
        alone = data.draw(st.booleans())
        beside = Nodes.of(TokenTree.chain(TEXT[60:75]), other_row, 0)
        flat, first = (mine, 0) if alone else (Nodes.join([beside, mine]), len(beside))
        if not alone:
            model.cache.rewind(other_row, 0)
        logits = model.target(flat, first + torch.arange(len(tree)))
        choices = torch.full((len(tree),), -5)
        path = _path_of(tree, chain)
        choices[path[:-1]] = tree.tokens[path[1:]]
        accepted, _ = accept(tree, choices)
        assert accepted.tolist() == path
        assert torch.equal(logits[accepted], plain[at : at + len(path)])
        model.cache.keep(row, accepted)
        at += len(path)


def _path_of(tree: TokenTree, chain: list[int]) -> list[int]:
    path = [0]
    for token in chain[1:]:
        here = [i for i in range(len(tree)) if int(tree.parents[i]) == path[-1] and int(tree.tokens[i]) == token]
        path.append(here[0])
    return path

"""A pass of the target: logits come tile by tile, and a pass that wants none leaves the head unread."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.tiny import save
from understudy import LLM
from understudy.layer_states import SlidingState
from understudy.models.model import Model
from understudy.models.target import TILE
from understudy.tree import Nodes, TokenTree


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = tmp_path_factory.mktemp("target")
    save(path, "gemma3_text", torch.bfloat16, max_position_embeddings=1024)
    with LLM(path, method="none", resident="none", memory="1GiB", context=768, rows=2) as llm:
        yield llm.model


@torch.inference_mode()
def test_logits_are_chosen_from_once_for_each_tile_that_has_wanted_nodes(model: Model) -> None:
    nodes = Nodes.of(TokenTree.chain(list(range(3 * TILE + 5))), 0, 0)
    wanted = torch.tensor([1, 4, 2 * TILE, 2 * TILE + 1, 3 * TILE + 4])
    heard: list[tuple[int, int]] = []

    def choose(logits: Tensor, start: int) -> Tensor:
        heard.append((start, len(logits)))
        return logits.argmax(-1)

    chosen = model.target(nodes, wanted, choose)
    assert heard == [(0, 2), (2, 2), (4, 1)]
    assert torch.equal(chosen, model.target(nodes, wanted).argmax(-1))
    assert torch.equal(chosen, model.target(nodes, torch.arange(len(nodes))).argmax(-1)[wanted])


@torch.inference_mode()
def test_a_pass_that_wants_no_logits_streams_all_the_same(model: Model) -> None:
    before = model.supply.bytes_used
    assert len(model.target(Nodes.of(TokenTree.chain([5] * 40), 1, 0), torch.empty(0, dtype=torch.int64))) == 0
    streamed = model.supply.bytes_used - before
    assert 0 < streamed <= model.plan.streamed_bytes


@torch.inference_mode()
def test_a_pass_notes_what_it_may_overwrite(model: Model) -> None:
    """A long chunk that is not kept, as after a failure: the cache knows that a sliding layer has lost the row's window."""
    cache = model.cache
    assert any(isinstance(layer, SlidingState) for layer in cache.layers)
    for count, reached in ((20, 100), (700, 0)):
        cache.rewind(0, 0)
        for start, size in ((0, 100), (100, count)):
            nodes = Nodes.of(TokenTree.chain([3] * size), 0, start)
            model.target(nodes, torch.empty(0, dtype=torch.int64))
            if not start:
                cache.keep(0, torch.arange(size))
        assert cache.rewind(0, 100) == reached

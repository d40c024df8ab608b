"""A pass of the target: logits come tile by tile, and a pass that wants none leaves the head unread."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import save
from understudy import LLM, SamplingParams
from understudy.layer_states import SlidingState
from understudy.models.model import Model
from understudy.models.target import TILE, WIDE, Tile
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


# those with layers of every kind: full, sliding, recurrent, convolutions, and keys that several layers share
KINDS = ("llama", "gemma3_text", "gemma2", "qwen3_5_text", "bamba", "lfm2", "granite", "olmo2", "gemma4_text", "nemotron_h")
TEXT = [3 + 5 * place % 90 for place in range(3 * WIDE + 50)]


@torch.inference_mode()
@pytest.mark.parametrize("family", KINDS)
def test_a_long_prompt_has_the_same_bits_in_wide_tiles(family: str, tmp_path: Path) -> None:
    save(tmp_path, family, torch.bfloat16, max_position_embeddings=1024)
    # it holds a tree
    with LLM(tmp_path, method="ngram", resident="none", memory="1GiB", context=768, rows=2) as llm:
        target, cache = llm.model.target, llm.model.cache
        last = torch.tensor([len(TEXT) - 1])
        narrow = target(Nodes.of(TokenTree.chain(TEXT), 0, 0), last)
        assert target.widest == TILE
        for row in (0, 1):
            cache.rewind(row, 0)
        assert target.widen(Nodes.of(TokenTree.chain(TEXT), 0, 0)) and target.widest == WIDE and not target.untried
        for row in (0, 1):
            # a prompt of one row, and of two rows side by side
            nodes = [Nodes.of(TokenTree.chain(TEXT), each, 0) for each in range(row + 1)]
            wanted = torch.arange(len(TEXT) - 1, len(TEXT) * (row + 1), len(TEXT))
            assert torch.equal(target(Nodes.join(nodes), wanted), narrow.expand(row + 1, -1))
            cache.rewind(0, 0)
        following = []
        for row in (0, 1):
            target.widest = (TILE, WIDE)[row]
            cache.rewind(row, 0)
            target(Nodes.of(TokenTree.chain(TEXT), row, 0), last)
            cache.keep(row, torch.arange(len(TEXT)))
            following.append(target(Nodes.of(TokenTree.of([5, 6, 7], [-1, 0, 0]), row, len(TEXT)), torch.arange(3)))
        assert torch.equal(*following)


def test_a_long_prompt_shares_what_torch_does_among_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the rows of wide tiles; with the same keys and values as on one thread."""
    save(tmp_path, "llama", torch.bfloat16, max_position_embeddings=1024)
    stock: list[tuple[int, int]] = []
    forward = Tile.forward

    def noted(tile: Tile) -> Tensor | None:
        stock.append((tile.count, torch.get_num_threads()))
        return forward(tile)

    monkeypatch.setattr(Tile, "forward", noted)
    kept = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            with LLM(tmp_path, method="none", memory="1GiB", context=768) as llm:
                llm.generate([TEXT], SamplingParams(max_new_tokens=2, ignore_eos=True))
                assert llm.model.target.widest == WIDE
                kept.append([state.keys[0, :, : len(TEXT)].clone() for state in llm.model.cache.states])
        finally:
            torch.set_num_threads(1)
        assert {found for count, found in stock if count == WIDE} == {threads}
        # the prompt's other tiles, and the token after it
        assert {found for count, found in stock if count < WIDE} == {1} and stock[-1] == (1, 1)
        stock.clear()
    assert all(map(torch.equal, *kept))


def test_a_trial_that_fails_half_way_is_made_again(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    target, nodes = model.target, Nodes.of(TokenTree.chain(TEXT), 0, 0)
    monkeypatch.setattr(target, "widest", TILE)
    monkeypatch.setattr(target, "untried", target.untried or [entry.shape[0] for entry in model.weights.entries])
    embed = target.embed
    monkeypatch.setattr(target, "embed", lambda tokens: embed(tokens[: 1 // 0]))
    with pytest.raises(ZeroDivisionError):
        target.widen(nodes)
    assert target.widest == TILE and target.untried
    monkeypatch.setattr(target, "embed", embed)
    assert target.widen(nodes) and target.widest == WIDE and not target.untried


@torch.inference_mode()
def test_the_stock_model_is_given_whole_tiles(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    embed = model.target.embed
    monkeypatch.setattr(model.target, "embed", lambda tokens: (seen.append(len(tokens)), embed(tokens))[1])
    for count, rows in ((1, [TILE]), (TILE, [TILE]), (TILE + 1, [TILE, TILE])):
        seen.clear()
        model.cache.rewind(0, 0)
        model.target(Nodes.of(TokenTree.chain(TEXT[:count]), 0, 0), torch.tensor([0]))
        assert seen == rows


def test_tiles_are_wide_where_no_logits_are_wanted(model: Model) -> None:
    before, model.target.widest = model.target.widest, WIDE
    try:
        for nodes, wanted, rows in (
            (4 * WIDE, [], [WIDE] * 4),
            (2 * WIDE, [2 * WIDE - 1], [WIDE, *[TILE] * 4]),
            (2 * WIDE + 1, [3], [*[TILE] * 1, WIDE, *[TILE] * 4]),
            (WIDE - 1, [], [TILE] * 4),
        ):
            cut = list(model.target._cut(nodes, torch.tensor(wanted, dtype=torch.int64)))
            assert [height for _, height in cut] == rows
            assert [start for start, _ in cut] == [sum(rows[:i]) for i in range(len(rows))]
    finally:
        model.target.widest = before


def test_a_prompt_of_a_model_whose_rows_know_each_other_is_read_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, "llama", torch.bfloat16, max_position_embeddings=1024)
    from transformers.models.llama import modeling_llama

    def mixing(self: Any, states: Tensor) -> Tensor:
        return self.weight * (states + 0.01 * states.mean(-2, keepdim=True))

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", mixing)
    # which would refuse it
    monkeypatch.setattr("understudy.sources.prove", lambda config, cache: None)
    asked = SamplingParams(max_new_tokens=2, ignore_eos=True)
    with LLM(tmp_path, method="none", memory="1GiB", context=768) as llm:
        llm.generate([TEXT[40:240]], asked)
        assert llm.model.target.untried, "a short prompt is not worth a trial"
        with pytest.warns(RuntimeWarning, match="32 tokens at a time"):
            llm.generate([TEXT], asked)
        assert llm.model.target.widest == TILE and any("32 tokens at a time" in note for note in llm.plan.notes)

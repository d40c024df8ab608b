"""A pass in one forward: the bits of a node do not depend on the others, and a model whose rows know each other is found."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fake_device import RowDevice
from tests.tiny import FAMILIES, save
from understudy import LLM, SamplingParams
from understudy.devices import DEVICES
from understudy.layer_states import SlidingState
from understudy.models.model import Model
from understudy.models.target import TILE
from understudy.tree import Nodes, TokenTree

# those with layers of every kind: full, sliding, recurrent, convolutions
KINDS = ("llama", "gemma3_text", "gemma2", "qwen3_5_text", "bamba", "lfm2", "granite", "olmo2", "gemma4_text", "nemotron_h")


def open_rows() -> RowDevice:
    return RowDevice()


@pytest.fixture(autouse=True)
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEVICES, "rows", f"{__name__}:open_rows")


def opened(path: Any, **options: Any) -> LLM:
    asked: dict[str, Any] = {
        "device": "rows", "codec": "raw", "resident": "none", "memory": "2GiB", "context": 400, "rows": 2, **options,
    }  # fmt: skip
    return LLM(path, **asked)


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = tmp_path_factory.mktemp("whole")
    save(path, request.param, torch.bfloat16)
    DEVICES["rows"] = f"{__name__}:open_rows"
    # it holds a tree
    with opened(path, method="ngram") as llm:
        yield llm.model
    del DEVICES["rows"]


def logits_of(model: Model, tree: TokenTree, row: int, length: int = 0) -> Tensor:
    return model.target(Nodes.of(tree, row, length), torch.arange(len(tree)))


@torch.inference_mode()
def test_a_node_has_the_same_bits_in_a_tree_in_a_prompt_and_alone(model: Model) -> None:
    assert model.target.whole and model.cost.unit == 64
    before = model.supply.bytes_used
    text = [3 + 5 * place % 90 for place in range(300)]
    prompt = logits_of(model, TokenTree.chain(text), 0)
    assert prompt.shape[0] == len(text) and model.supply.bytes_used > before
    for row in (0, 1):
        model.cache.rewind(row, 0)
    for start in (*range(0, 192, 48), *range(192, 200)):
        size = 48 if start < 192 else 1
        chunk = logits_of(model, TokenTree.chain(text[start : start + size]), 1, start)
        assert torch.equal(chunk, prompt[start : start + size]), start
        model.cache.keep(1, torch.arange(size))
    tree = TokenTree.of([text[200], 7, text[201], text[202], 9], [-1, 0, 0, 2, 1])
    found = logits_of(model, tree, 1, 200)
    assert torch.equal(found[[0, 2, 3]], prompt[200:203])


@torch.inference_mode()
def test_logits_are_chosen_from_all_at_once(model: Model) -> None:
    heard: list[tuple[int, int]] = []

    def choose(logits: Tensor, start: int) -> Tensor:
        heard.append((start, len(logits)))
        return logits.argmax(-1)

    model.cache.rewind(0, 0)
    wanted = torch.arange(3, 3 + TILE + 4)
    chosen = model.target(Nodes.of(TokenTree.chain([5] * 60), 0, 0), wanted, choose)
    assert heard == [(0, TILE + 4)] and len(chosen) == len(wanted)
    assert len(model.target(Nodes.of(TokenTree.chain([5] * 60), 0, 0), torch.empty(0, dtype=torch.int64))) == 0


def test_long_prompts_pass_through_sliding_layers(tmp_path: Any) -> None:
    save(tmp_path, "gemma3_text", torch.float32, max_position_embeddings=2048)
    text = [3 + 5 * place % 90 for place in range(1100)]
    texts = []
    for device in ("rows", "cpu"):
        with opened(tmp_path, method="none", device=device, context=1200, rows=1) as llm:
            assert any(isinstance(layer, SlidingState) for layer in llm.model.cache.layers)
            assert llm.model.target.whole == (device == "rows")
            texts.append(llm.generate([text], SamplingParams(max_new_tokens=5, ignore_eos=True))[0].token_ids)
    assert texts[0] == texts[1]


def test_drafted_text_is_plain_text(tmp_path: Any) -> None:
    save(tmp_path, "llama", torch.bfloat16)
    prompts = [[5, 99, 5, 12, 80, 5, 99, 5], list(range(40, 90))]
    asked = [SamplingParams(max_new_tokens=24, ignore_eos=True, temperature=heat, seed=3) for heat in (0.0, 0.8)]
    texts = []
    for method in ("none", "substitute"):
        with opened(tmp_path, method=method) as llm:
            assert llm.model.target.whole
            done = [one for params in asked for one in llm.generate(prompts, params)]
            texts.append([one.token_ids for one in done])
            assert method == "none" or sum(one.stats.accepted for one in done) > 0
    assert texts[0] == texts[1]


def test_a_model_whose_rows_know_each_other_runs_tile_by_tile(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, "llama", torch.bfloat16)
    from transformers.models.llama import modeling_llama

    def mixing(self: Any, states: Tensor) -> Tensor:
        return self.weight * (states + 0.01 * states.mean(-2, keepdim=True))

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", mixing)
    # which would refuse it
    monkeypatch.setattr("understudy.sources.prove", lambda config, cache: None)
    with opened(tmp_path, method="none") as llm:
        assert not llm.model.target.whole
        assert any("tile by tile" in note for note in llm.plan.notes)


@pytest.mark.parametrize("context", [20, 128])
def test_a_model_of_few_positions_is_tried_with_no_more(tmp_path: Any, context: int) -> None:
    save(tmp_path, "opt", torch.bfloat16, max_position_embeddings=128)
    with opened(tmp_path, method="ngram", context=context) as llm:
        assert llm.model.target.whole and llm.model.cache.capacity > context
        assert len(llm.generate([[5, 6, 7]], SamplingParams(max_new_tokens=3, ignore_eos=True))[0].token_ids) == 3


def test_each_kind_is_known() -> None:
    assert set(KINDS) <= set(FAMILIES)

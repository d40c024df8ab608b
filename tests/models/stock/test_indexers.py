"""The index of sparse attention: a module of ours in the place of the stock one, whatever way it turns its keys."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from tests.tiny import generated, opened, save, values_of
from understudy import SamplingParams
from understudy.cache import Cache
from understudy.devices import DEVICES
from understudy.drafters.search import SearchDrafter
from understudy.errors import CheckpointError, UsageError
from understudy.kernels.attention import ALL
from understudy.kernels.chosen_keys import IndexQuery
from understudy.layer_states import FullState
from understudy.models.proving import proof
from understudy.models.stock import indexers, structure
from understudy.models.stock.shape import ModelShape
from understudy.models.streamed import CurrentPass, attention_name
from understudy.tree import Nodes, TokenTree

FAMILIES = ("deepseek_v32", "glm_moe_dsa", "minimax_m3_vl_text")
PROMPT = [(i * i + i // 3) % 90 + 1 for i in range(60)]


def config_of(family: str) -> Any:
    return AutoConfig.for_model(**values_of(family))




@pytest.mark.parametrize("family", FAMILIES)
def test_layers_with_an_index_keep_its_keys(family: str) -> None:
    config = config_of(family)
    model = structure.skeleton(config, torch.float32, attention_name())
    found = [module.layer_idx for module in model.modules() if hasattr(module, "weights_proj") or hasattr(module, "topk_blocks")]
    sizes = [layer.index_size for layer in ModelShape.of(config).layers]
    assert found == [layer for layer, size in enumerate(sizes) if size] and set(sizes) <= {0, 16}
    assert (0 in sizes) == (family != "deepseek_v32")
    structure.check_structure(model)


class Pass:
    """Chooses what it is asked, and notes it."""

    def choose(self, *asked: Any) -> Any:
        self.asked = asked
        return "chosen"


class Index(nn.Module):
    """Of a published form: two heads of four numbers."""

    layer_idx, index_topk = 3, 5

    def forward(self, x: Tensor, queries: Tensor, past_key_values: Any) -> Any:
        keys = past_key_values.update_indexer(x, self.layer_idx)
        scores = nn.functional.relu(torch.matmul(queries.float(), keys.transpose(-1, -2).float().unsqueeze(1)) * 0.5)
        found = torch.matmul(x[..., :2].unsqueeze(-2), scores).squeeze(-2)
        found = found + torch.zeros(1)
        return found.topk(min(self.index_topk, found.shape[-1]), dim=-1).indices.to(torch.int32)


class OtherIndex(Index):
    """Adds its heads up without weights."""

    def forward(self, x: Tensor, queries: Tensor, past_key_values: Any) -> Any:
        keys = past_key_values.update_indexer(x, self.layer_idx)
        return torch.matmul(queries, keys.transpose(-1, -2)).sum(2)


def test_a_pass_is_asked_by_what_stock_code_multiplies() -> None:
    index, x, queries = Index(), torch.randn(1, 6, 4), torch.randn(1, 6, 2, 4)
    assert indexers.install_indexers(nn.Sequential(index)) == 1
    index.understudy = CurrentPass()
    index.understudy.under_way = under_way = Pass()  # type: ignore[assignment]
    assert index(x, queries, past_key_values=None) == "chosen"
    layer, keys, asked = under_way.asked
    assert layer == 3 and asked.most == 5 and torch.equal(keys, x[0])
    assert torch.equal(asked.queries, queries[0]) and torch.equal(asked.weights, x[0, :, :2])
    assert index(x.to("meta"), queries.to("meta"), past_key_values=None) is ALL


class BlockIndex(nn.Module):
    """Of the other published form, as far as it calls its cache and torch: two heads that choose for themselves."""

    layer_idx, topk_blocks, block_size, local_blocks = 3, 4, 16, 1

    def forward(self, x: Tensor, queries: Tensor, past_key_values: Any) -> Any:
        keys = past_key_values.layers[self.layer_idx].update_index(x[None])
        count = -(-keys.shape[2] // self.block_size)
        scores = torch.matmul(queries.float(), keys.float().transpose(-1, -2)).masked_fill(torch.ones(1).bool(), float("-inf"))
        scores = nn.functional.pad(scores, (0, 15), value=float("-inf")).view(1, 2, 6, count, self.block_size).amax(dim=-1)
        scores.scatter_(-1, torch.zeros(1), float("inf"))
        values, found = scores.topk(min(self.topk_blocks, count), dim=-1)
        return found.masked_fill(values == float("-inf"), -1)


def test_heads_that_choose_for_themselves_ask_for_blocks() -> None:
    index, x, queries = BlockIndex(), torch.randn(1, 6, 4), torch.randn(1, 2, 6, 4)
    assert indexers.install_indexers(nn.Sequential(index)) == 1
    index.understudy = CurrentPass()
    index.understudy.under_way = under_way = Pass()  # type: ignore[assignment]
    assert index(x, queries, None) == "chosen"
    layer, keys, asked = under_way.asked
    assert (layer, asked.most, asked.block, asked.latest) == (3, 4, 16, 1) and asked.weights is None
    assert torch.equal(keys, x[0]) and torch.equal(asked.queries, queries[0].transpose(0, 1))


def test_heads_that_choose_for_themselves_are_for_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, "minimax_m3_vl_text", torch.bfloat16)
    monkeypatch.setitem(DEVICES, "fake", "tests.fake_device:open_fake")
    with pytest.raises(UsageError, match="chooses the tokens that it looks at, which runs on the processor alone"):
        opened(tmp_path, device="fake")


def test_an_index_of_another_form_is_refused() -> None:
    index = OtherIndex()
    indexers.install_indexers(nn.Sequential(index))
    with pytest.raises(CheckpointError, match="OtherIndex chooses tokens in a way that is not supported"):
        index(torch.randn(1, 6, 4), torch.randn(1, 6, 2, 4), past_key_values=None)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_proof_sees_an_index_that_chooses_otherwise(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, usual = config_of(family), IndexQuery
    assert proof.fault(config) is None
    monkeypatch.setattr(indexers, "IndexQuery", lambda *asked: replace(usual(*asked), most=usual(*asked).most - 1))
    assert "gives other logits" in str(proof.fault(config))


@pytest.mark.parametrize("family", FAMILIES)
def test_long_texts_are_those_of_transformers_in_every_way(family: str, tmp_path: Path) -> None:
    """Far beyond what a layer looks at, alone and side by side, after a prefix that is copied, with keys of 8 bits, padded."""
    model = save(tmp_path / "single", family)
    greedy = SamplingParams(max_new_tokens=60, ignore_eos=True)
    with opened(tmp_path / "single", context=256) as llm:
        single = llm.generate(PROMPT, greedy)[0]
    assert single.token_ids == generated(model, PROMPT, 60) and single.stats.accepted > 0
    save(tmp_path / "half", family, torch.bfloat16)
    prompts = [PROMPT, [*PROMPT[:50], 7, 8, 9], PROMPT[20:]]
    sampled = SamplingParams(max_new_tokens=40, ignore_eos=True, temperature=0.7, seed=5)
    texts = []
    for options in (
        {"method": "none"}, {}, {"rows": 3}, {"rows": 3, "policy": "exspec"}, {"rows": 3, "policy": "eqspec"},
    ):  # fmt: skip
        with opened(tmp_path / "half", context=256, **options) as llm:
            done = llm.generate(prompts, sampled)
            texts.append([text.token_ids for text in done])
            assert options == {"method": "none"} or min(text.stats.accepted for text in done) > 0
            assert min(text.stats.bytes_streamed for text in done) > 0
            assert "rows" in options or sum(text.stats.cached_tokens for text in done) >= 40
    assert all(found == texts[0] for found in texts)
    small = []
    # latent states have no 8 bits
    for method in ("none", "substitute") if family == "minimax_m3_vl_text" else ():
        with opened(tmp_path / "half", context=256, kv_bits=8, method=method) as llm:
            small.append([text.token_ids for text in llm.generate(prompts, sampled)])
    assert all(found == small[0] for found in small)


@pytest.mark.parametrize("family", FAMILIES[:2])
def test_a_device_chooses_too(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEVICES, "fake", "tests.fake_device:open_fake")
    # the kernels' interpreter is slow
    monkeypatch.setattr(SearchDrafter, "warm", lambda self: None)
    model, prompt = save(tmp_path, family), PROMPT[:20]
    # more tokens than a layer looks at
    assert len(prompt) > values_of(family)["index_topk"]
    with opened(tmp_path, device="fake") as llm:
        done = llm.generate(prompt, SamplingParams(max_new_tokens=6, ignore_eos=True))[0]
    assert done.token_ids == generated(model, prompt, 6) and done.stats.accepted > 0


def test_an_index_goes_where_its_keys_go() -> None:
    """Kept with an accepted path, copied to another row, taken for the disk and put back."""
    shapes = ModelShape.of(config_of("deepseek_v32")).layers[:1]
    cache = Cache(shapes, 2, 64, torch.float32)
    (state,) = cache.states
    assert isinstance(state, FullState) and state.index is not None and state.nbytes > state.keys.nbytes + state.values.nbytes
    nodes = Nodes.of(TokenTree.of([1, 2, 3, 4], [-1, 0, 0, 2]), 0, 0)
    keys = torch.arange(4.0)[:, None].expand(4, shapes[0].index_size)
    cache.begin_pass(nodes)
    state.write_index(nodes, keys)
    cache.keep(0, torch.tensor([0, 2, 3]))
    assert state.index[0, 0, :3, 0].tolist() == [0, 2, 3]
    cache.copy(0, 1, 2)
    assert state.index[1, 0, :2, 0].tolist() == [0, 2]
    taken = state.taken(0, 1, 3)
    state.put(1, 1, taken, 1)
    assert state.index[1, 0, :3, 0].tolist() == [0, 2, 3]

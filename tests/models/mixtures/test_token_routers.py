"""Routers that go by tokens are told those of the pass, and their tables come from the checkpoint."""

from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEmbeddings

from tests.tiny import opened, save, stock
from understudy.errors import CheckpointError
from understudy.models.mixtures.token_routers import install_token_routers, tables_of_tokens
from understudy.models.stock.stored_tensors import stored_buffers


def test_a_router_goes_by_the_tokens_of_the_pass() -> None:
    model = stock("deepseek_v4")
    router: Any = model.model.layers[0].mlp.gate
    assert [type(each).__name__ for each in model.modules() if tables_of_tokens(each)] == ["DeepseekV4HashRouter"]
    hidden, tokens = torch.randn(1, 3, 64), torch.tensor([7, 250, 7])
    with torch.no_grad():
        expected = router(hidden, tokens[None])
        install_token_routers(model)
        router.understudy = SimpleNamespace(under_way=SimpleNamespace(tokens=tokens))
        # the numbers of rows that are at hand
        found = router(hidden, input_ids=torch.arange(3)[None])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert torch.equal(found[2], router.tid2eid[tokens])


def test_the_table_is_stored_with_what_both_views_share(tmp_path: Path) -> None:
    model = save(tmp_path, "deepseek_v4", torch.bfloat16)
    assert "model.layers.0.mlp.gate.tid2eid" in stored_buffers(model)
    with opened(tmp_path) as llm:
        assert torch.equal(llm.model.module.get_buffer("model.layers.0.mlp.gate.tid2eid"), model.model.layers[0].mlp.gate.tid2eid)
    place = tmp_path / "model.safetensors"
    tensors = load_file(place)
    (name,) = [name for name in tensors if name.endswith("tid2eid")]
    table = tensors.pop(name)
    cases = (None, "has no tensor .*tid2eid"), (table.float(), "whole numbers are needed"), (table[1:], "config asks for")
    for broken, says in cases:
        save_file(tensors if broken is None else {**tensors, name: broken.contiguous()}, place, {"format": "pt"})
        with pytest.raises(CheckpointError, match=says):
            opened(tmp_path)


def test_positions_are_no_tables() -> None:
    embeddings = BertEmbeddings(BertConfig(hidden_size=32, num_attention_heads=2))
    assert "input_ids" in signature(embeddings.forward).parameters and embeddings.position_ids.dim() == 2
    assert not tables_of_tokens(embeddings)
    embeddings.register_buffer("position_ids", embeddings.position_ids)
    assert stored_buffers(embeddings) == []


def test_single_numbers_are_no_tables() -> None:
    module = nn.BatchNorm1d(4)
    assert "num_batches_tracked" not in stored_buffers(module) and "running_mean" in stored_buffers(module)

"""An embedding is a lookup in a table, and depends on nothing else: on no padding index, and on no other token of the call."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from tests.tiny import generated, save, stock
from understudy import LLM, SamplingParams
from understudy.errors import StoreError, TransferError
from understudy.models.embedding import EmbeddingRows, Lookup, TensorRows
from understudy.models.stock import structure
from understudy.weights.entries import Stored

PROMPT = [17, 45, 255, 0, 3, 17, 45, 99]


def edit(directory: Path, **changes: object) -> None:
    """Change config.json as a person with an editor would."""
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def told(directory: Path, method: str, count: int = 24) -> list[int]:
    with LLM(directory, method=method, dtype="float32", memory="1GiB", context=128) as llm:
        done = llm.generate(PROMPT, SamplingParams(max_new_tokens=count, ignore_eos=True))[0]
        assert method == "none" or done.stats.accepted > 0
        return done.token_ids


@pytest.mark.parametrize(("family", "pad"), [("llama", 255), ("llama", 256), ("llama", -1), ("gemma3_text", 255)])
def test_a_pad_token_changes_nothing_wherever_it_lies(family: str, pad: int, tmp_path: Path) -> None:
    model = save(tmp_path, family)
    edit(tmp_path, pad_token_id=pad)
    assert told(tmp_path, "substitute") == generated(model, PROMPT, 24)
    assert pad != 255 or told(tmp_path, "none") == generated(model, PROMPT, 24)


def test_tables_beside_the_embedding_stay_where_they_are_too(tmp_path: Path) -> None:
    """Gemma-4's small models have one with rows for each layer, which holds more than all their Linears."""
    model = save(tmp_path / "model", "gemma4-e")
    name = "model.embed_tokens_per_layer.weight"
    with LLM(tmp_path / "model", memory="1GiB", context=128) as llm:
        done = llm.generate(PROMPT, SamplingParams(max_new_tokens=24, ignore_eos=True))[0]
        store, tables = llm.store, llm.model.lookup.tables
        assert done.token_ids == generated(model, PROMPT, 24) and done.stats.accepted > 0
        assert list(store.tables) == [name] and name not in store.shared and name not in llm.model.weights.shared
        assert torch.equal(store.read(store.tables[name]), model.get_parameter(name))
        assert [(type(table), table.module.weight.shape[1]) for table in tables] == [(EmbeddingRows, 64), (EmbeddingRows, 8 * 24)]
        assert all(len(table.module.weight) <= 32 for table in tables), "rows of a tile, not a table"
    assert [table.file for table in tables] == [-1, -1], "all files are closed"


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma4-e"])
def test_a_flipped_bit_in_a_table_is_found_before_any_text(
    family: str, link: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The Store that is damaged is this test's own: other tests open those in the suite's cache.
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    save(tmp_path / "model", family)
    with LLM(tmp_path / "model", memory="1GiB", context=128, link=link) as llm:
        store, table = llm.store.path, llm.store.looked_up[-1]
        file = llm.store.file(table.file)
    times = file.stat()
    damaged = bytearray(file.read_bytes())
    damaged[table.offset + table.nbytes // 2] ^= 4
    file.write_bytes(damaged)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    place = f"{re.escape(str(file))} is damaged in bytes {table.offset} to {table.offset + table.nbytes}"
    for method in ("none", "substitute"):
        with pytest.raises(StoreError, match=place):
            LLM(store, memory="1GiB", context=128, method=method)


@pytest.mark.parametrize("pad", [255, 256, -300])
def test_a_plan_needs_no_particular_pad_token(pad: int, tmp_path: Path) -> None:
    save(tmp_path, "llama")
    edit(tmp_path, pad_token_id=pad)
    assert LLM.plan_only(None, config=tmp_path, memory="1GiB").residual_bytes > 0
    assert LLM.plan_only(tmp_path, memory="1GiB").residual_bytes > 0


@pytest.mark.parametrize("value", [255, 256, -1])
def test_other_special_tokens_may_lie_anywhere(value: int, tmp_path: Path) -> None:
    model = save(tmp_path, "llama")
    edit(tmp_path, bos_token_id=value, eos_token_id=[value, 0])
    assert told(tmp_path, "substitute") == generated(model, PROMPT, 24)


@pytest.fixture
def table(tmp_path: Path) -> tuple[Path, Stored, torch.Tensor]:
    """A table of 50 rows of 8 on disk, after 16 other bytes."""
    weight = torch.randn(50, 8, generator=torch.Generator().manual_seed(3))
    path = tmp_path / "table.bin"
    path.write_bytes(bytes(16) + weight.numpy().tobytes())
    return path, Stored(str(path), 16, weight.numel() * 4, torch.float32, (50, 8), ""), weight


def module_of(family: str, **changes: object) -> torch.nn.Embedding:
    """The embedding module that a model of this family gets."""
    config = stock(family, **changes).config
    model = structure.skeleton(AutoConfig.for_model(**config.to_dict()), torch.float32, "eager")
    module = model.get_input_embeddings()  # type: ignore[operator]
    assert isinstance(module, torch.nn.Embedding)
    return module


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text"])
def test_rows_are_those_of_the_whole_table_scaled_as_the_family_does(
    family: str, table: tuple[Path, Stored, torch.Tensor]
) -> None:
    path, stored, weight = table
    whole = stock(family, vocab_size=50, hidden_size=8, pad_token_id=49).get_input_embeddings()
    whole.weight.data.copy_(weight)
    module = module_of(family, vocab_size=50, hidden_size=8, pad_token_id=49)
    rows = EmbeddingRows(module, path, stored, 0)
    tokens = torch.tensor([49, 3, 3, 0, 49])
    assert torch.equal(module(rows(tokens)), whole(tokens))
    rows.close()


def test_rows_of_a_bounded_norm_are_bounded_and_the_kept_ones_stay_as_they_are(
    table: tuple[Path, Stored, torch.Tensor],
) -> None:
    path, stored, weight = table
    whole = torch.nn.Embedding(50, 8, max_norm=1.0, _weight=weight.clone(), _freeze=True)
    module = torch.nn.Embedding(50, 8, max_norm=1.0, _freeze=True)
    rows = EmbeddingRows(module, path, stored, 1 << 20)
    tokens = torch.tensor([7, 3, 7])
    assert torch.equal(module(rows(tokens)), whole(tokens))
    assert torch.equal(rows.cached[7], weight[7]) and weight[7].norm() > 1
    rows.close()


def test_a_table_beside_the_embedding_gives_its_first_row_for_tokens_that_it_lacks() -> None:
    own, beside = torch.nn.Embedding(50, 8), torch.nn.Embedding(40, 3)
    weights = torch.randn(50, 8), torch.randn(40, 3)
    lookup = Lookup(map(TensorRows, (own, beside), weights))
    given = lookup(torch.tensor([39, 40, 3, 49]))
    assert given.tolist() == [0, 1, 2, 3]
    assert torch.equal(own(given), weights[0][[39, 40, 3, 49]]) and torch.equal(beside(given), weights[1][[39, 0, 3, 0]])


def test_a_table_that_ends_too_early_is_an_error_that_names_the_row(table: tuple[Path, Stored, torch.Tensor]) -> None:
    path, stored, _ = table
    path.write_bytes(path.read_bytes()[:-4])
    rows = EmbeddingRows(torch.nn.Embedding(50, 8), path, stored, 0)
    rows(torch.tensor([48]))
    with pytest.raises(TransferError, match="embedding row 49 lacks 4 bytes"):
        rows(torch.tensor([49]))
    rows.close()

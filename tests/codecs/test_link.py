"""`--link`: the exact weights stay in the original files, which must stay as they were."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import save
from understudy import LLM, SamplingParams, demo
from understudy.errors import StoreError, UsageError
from understudy.weights.building import Building
from understudy.weights.store import Store

GREEDY = SamplingParams(max_new_tokens=16, ignore_eos=True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save(tmp_path / "model", "llama", torch.bfloat16, vocab_size=260)  # the head's last block is padded
    return tmp_path / "model"


def size(store: Store) -> int:
    return sum(file.stat().st_size for file in store.path.iterdir())


def residual_bytes(store: Store) -> int:
    return sum(part.stored.nbytes for entry in store.linears.values() for part in entry.parts)


def test_the_store_holds_no_copy_of_the_exact_weights(tmp_path: Path) -> None:
    raw = LLM.prepare(demo.path(), codec="raw", output=tmp_path / "raw")
    linked = LLM.prepare(demo.path(), link=True, output=tmp_path / "linked")
    assert linked.recipe.codec == "link" and linked.file("residual.bin").stat().st_size == 0
    assert size(raw) - size(linked) > 0.9 * residual_bytes(raw)
    assert residual_bytes(linked) <= residual_bytes(raw)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tokens_are_those_of_raw(dtype: torch.dtype, tmp_path: Path) -> None:
    save(tmp_path / "model", "llama", dtype, vocab_size=260)
    tokens = []
    for options in ({"codec": "raw"}, {"link": True}):
        with LLM(tmp_path / "model", resident="none", memory="1GiB", context=256, **options) as llm:
            done = llm.generate([[5, 99, 5, 12]], GREEDY)[0]
        assert done.stats.bytes_streamed > 0 and done.stats.accepted > 0
        tokens.append(done.token_ids)
    assert tokens[0] == tokens[1]


def test_parts_begin_anywhere_on_a_page(model: Path, tmp_path: Path) -> None:
    """Also at an odd byte: safetensors asks for no alignment."""
    file = model / "model.safetensors"
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    file.write_bytes((length + 1).to_bytes(8, "little") + whole[8 : 8 + length] + b" " + whole[8 + length :])
    with LLM(model, codec="raw", output=tmp_path / "raw", resident="none", memory="1GiB") as llm:
        expected = llm.generate([[5, 99]], GREEDY)[0].token_ids
    with LLM(model, link=True, output=tmp_path / "linked", resident="none", memory="1GiB") as llm:
        leads = {part.stored.lead for entry in llm.store.linears.values() for part in entry.parts}
        assert len(leads) > 1 and all(lead % 2 for lead in leads)
        assert llm.generate([[5, 99]], GREEDY)[0].token_ids == expected


def test_an_original_that_is_gone_or_changed_is_refused_by_name(model: Path, tmp_path: Path) -> None:
    store = LLM.prepare(model, link=True, output=tmp_path / "store")
    file = model / "model.safetensors"
    whole = file.read_bytes()
    os.utime(file, (1, 1))
    assert Store.open(store.path).source == store.source  # the same bytes, whatever their date
    for damage in (file.unlink, lambda: file.write_bytes(whole + b"x"), lambda: file.write_bytes(bytes(len(whole)))):
        damage()
        with pytest.raises(
            StoreError, match=r"model\.safetensors (is gone|was changed).*prepare it again, or without --link"
        ):
            Store.open(store.path)
        file.write_bytes(whole)
    Store.open(store.path).verify()


def test_a_flipped_bit_of_the_original_is_found_before_any_text(model: Path, tmp_path: Path) -> None:
    store = LLM.prepare(model, link=True, output=tmp_path / "store")
    stored = store.linears["model.layers.0.mlp.down_proj"].parts[0].stored
    file = model / "model.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[stored.offset + 5000] ^= 4
    date = file.stat()
    file.write_bytes(damaged)
    os.utime(file, ns=(date.st_atime_ns, date.st_mtime_ns))
    with (
        LLM(store.path, resident="none", memory="1GiB", context=64) as llm,
        pytest.raises(StoreError, match=r"model\.safetensors is damaged"),
    ):
        llm.generate([[5, 99]], GREEDY)


def test_an_interrupted_preparation_goes_on(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    linear = Building._linear

    def killed(self: Building, spec: Any, *given: Any) -> Any:
        made.append(spec.module)
        if len(made) == 6:
            raise KeyboardInterrupt
        return linear(self, spec, *given)

    monkeypatch.setattr(Building, "_linear", killed)
    with pytest.raises(KeyboardInterrupt):
        LLM.prepare(model, link=True, output=tmp_path / "store")
    store = LLM.prepare(model, link=True, output=tmp_path / "store")
    assert len(made) == len(store.linears) + 1  # none twice but the one that was interrupted
    assert all(entry.extents for entry in store.linears.values())
    store.verify()


@pytest.mark.parametrize(("options", "what"), [({"codec": "delta"}, "--codec delta"), ({"bits": 16}, "--bits 8")])
def test_what_keeps_a_copy_is_refused(options: dict[str, Any], what: str, model: Path) -> None:
    with pytest.raises(UsageError, match=what):
        LLM.prepare(model, link=True, **options)

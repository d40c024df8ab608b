"""Heads on disk: what is written is read again, and what is damaged or for another model is refused in one line."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.heads.golden import FACTS, LAYER, VOCABULARY, randomized
from understudy.errors import CheckpointError, StoreError, UsageError
from understudy.heads import BEFORE_NORM, DraftHead, HeadConfig
from understudy.heads.files import built, check, config_of, head_bytes, load, located, save
from understudy.heads.held import Holding

EAGLE = HeadConfig("eagle", FACTS, (-1,), layers=2, layer=LAYER, options={"bias": False, "last_norm": True})


@pytest.fixture
def head() -> DraftHead:
    return randomized(built(EAGLE))


@pytest.fixture
def saved(head: DraftHead, tmp_path: Path) -> Path:
    save(head, tmp_path / "head")
    return tmp_path / "head"


def changed(saved: Path, **values: Any) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | values))


def test_a_head_is_read_as_it_was_written(head: DraftHead, saved: Path) -> None:
    assert config_of(saved) == EAGLE
    again = load(saved, Holding(torch.float32))
    assert again.config == EAGLE and not again.training
    assert again.state_dict().keys() == head.state_dict().keys()
    assert all(torch.equal(tensor, head.state_dict()[name]) for name, tensor in again.state_dict().items())
    assert sorted(file.name for file in saved.iterdir()) == ["config.json", "model.safetensors"]
    assert (saved / "model.safetensors").stat().st_mode == (saved / "config.json").stat().st_mode


def test_a_head_computes_in_the_type_asked_for_and_its_token_map_stays(tmp_path: Path) -> None:
    head = randomized(built(replace(EAGLE, draft_vocab_size=5)))
    assert head.token_map is not None
    head.token_map += torch.tensor([3, 1, 4, 2, 39])
    save(head, tmp_path / "head")
    again = load(tmp_path / "head", Holding(torch.bfloat16))
    assert {weight.dtype for weight in again.parameters()} == {torch.bfloat16}
    assert again.token_map is not None and again.token_map.tolist() == [3, 1, 4, 2, 39]
    floating = sum(weight.numel() for weight in again.parameters())
    assert head_bytes(again.config, torch.bfloat16) == 2 * floating + 5 * 8


def test_a_head_takes_the_place_of_an_older_one_and_of_nothing_else(head: DraftHead, saved: Path) -> None:
    randomized(head, seed=5)
    save(head, saved)
    assert torch.equal(load(saved, Holding(torch.float32)).state_dict()["fc.weight"], head.state_dict()["fc.weight"])
    (saved / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UsageError, match="holds no head of Understudy"):
        save(head, saved)


def test_what_cannot_be_written_is_one_line(head: DraftHead, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        save(head, tmp_path / "file" / "head")


def test_a_full_disk_leaves_the_older_head(head: DraftHead, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: dict[str, torch.Tensor], place: Path, metadata: dict[str, str]) -> None:
        place.write_bytes(b"some of it")
        raise OSError(28, "No space left on device")

    before = (saved / "model.safetensors").read_bytes()
    monkeypatch.setattr("understudy.heads.files.save_file", full)
    with pytest.raises(StoreError, match=r"No space left on device\. Is there room on the disk\?"):
        save(randomized(head, seed=5), saved)
    assert (saved / "model.safetensors").read_bytes() == before
    assert sorted(file.name for file in saved.iterdir()) == ["config.json", "model.safetensors"]


def test_a_head_is_a_directory_or_one_of_the_hub(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert located(str(saved)) == saved
    with pytest.raises(CheckpointError, match="give a model directory or a Hugging Face id"):
        located("./no-such-head")

    def downloaded(name: str, offline: bool, wanted: tuple[str, ...]) -> Path:
        assert name == "someone/head" and {"*.safetensors", "*.bin", "*.pt"} < set(wanted)
        return saved

    monkeypatch.setattr("understudy.heads.files.download", downloaded)
    assert located("someone/head") == saved


def test_a_missing_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no head in"):
        config_of(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"holds no head: there is no config\.json in it"):
        config_of(tmp_path)


def test_a_config_that_describes_no_head_is_refused(saved: Path) -> None:
    for wrong, said in (
        ({"kind": "eagel"}, "kind 'eagel' is not known. Known: clover"),
        ({"layers": "two"}, "layers is not usable"),
        ({"taps": [1.5]}, r"taps\.0 is not usable"),
        ({"understudy_head": 2}, "format 2; this version reads 1"),
        ({"colour": "red"}, "unknown entry 'colour'"),
        ({"layer": LAYER | {"num_key_value_heads": 0}}, "integer division or modulo by zero"),
        ({"layer": LAYER | {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}}, "rope_type 'dynamic'"),
    ):
        kept = (saved / "config.json").read_text()
        changed(saved, **wrong)
        for read in (config_of, lambda path: load(path, Holding(torch.float32))):
            with pytest.raises(CheckpointError, match=said) as refusal:
                read(saved)
            assert str(saved) in str(refusal.value) and "\n" not in str(refusal.value)
        (saved / "config.json").write_text(kept)


def test_an_unknown_format_is_refused_with_those_that_are_read(saved: Path) -> None:
    (saved / "config.json").write_text('{"model_type": "llama"}')
    save_file({"model.norm.weight": torch.ones(4)}, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"Read are: Understudy's own, spec.*, EAGLE-3, EAGLE, Clover-2, Medusa"):
        config_of(saved)


def test_tensors_must_be_those_of_the_config(saved: Path) -> None:
    file = saved / "model.safetensors"
    tensors = load_file(file)
    for other, said in (
        ({name: tensor for name, tensor in tensors.items() if name != "norm.weight"}, "lacks the tensor 'norm.weight'"),
        (tensors | {"extra": torch.zeros(1)}, "has a tensor 'extra'"),
        (tensors | {"norm.weight": torch.zeros(3)}, r"'norm.weight' is \[3\], where its config tells of \[16\]"),
        (tensors | {"norm.weight": torch.full((16,), torch.nan)}, "'norm.weight' has NaN"),
    ):
        save_file(other, file)
        with pytest.raises(CheckpointError, match=said):
            load(saved, Holding(torch.float32))
        # What needs no values is seen before anything is prepared.
        if "NaN" not in said:
            with pytest.raises(CheckpointError, match=said):
                config_of(saved)


def test_a_file_cut_short_is_refused(saved: Path) -> None:
    whole = (saved / "model.safetensors").read_bytes()
    for length in (0, 5, 200, len(whole) - 1):
        (saved / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            load(saved, Holding(torch.float32))
    (saved / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no head"):
        load(saved, Holding(torch.float32))


@pytest.mark.parametrize("tokens", [[0, VOCABULARY], [-1, 3]])
def test_a_token_outside_of_the_targets_vocabulary_is_refused(tokens: list[int], tmp_path: Path) -> None:
    head = randomized(built(replace(EAGLE, draft_vocab_size=2)))
    assert head.token_map is not None
    head.token_map += torch.tensor(tokens)
    save(head, tmp_path / "head")
    with pytest.raises(CheckpointError, match=f"none of the {VOCABULARY} of its target"):
        load(tmp_path / "head", Holding(torch.float32))


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        ({"hidden_size": 32}, "hidden states of 16 numbers, and this one has hidden states of 32"),
        ({"vocab_size": 41}, "a vocabulary of 40 tokens, and this one has a vocabulary of 41"),
        ({"layers": 7}, "8 layers, and this one has 7 layers"),
        ({"architecture": "B"}, "the architecture A, and this one has the architecture B"),
        ({"fingerprint": "two"}, "the fingerprint one, and this one has weights with the fingerprint two"),
    ],
)
def test_a_head_for_another_model_is_refused_by_name(difference: dict[str, Any], said: str) -> None:
    facts = replace(FACTS, architecture="A", fingerprint="one")
    config = replace(EAGLE, target=facts)
    check(config, facts)
    check(config, replace(facts, architecture="", fingerprint="", layers=0))
    with pytest.raises(UsageError, match=said) as refusal:
        check(config, replace(facts, **difference), "eagle:here")
    assert str(refusal.value).startswith("eagle:here is for a model with")


def test_a_hidden_state_that_the_target_has_not_is_refused() -> None:
    check(replace(EAGLE, taps=(BEFORE_NORM, 8, -9)), FACTS)
    for tap in (9, -10):
        with pytest.raises(UsageError, match=f"reads hidden state {tap}, and this model of 8 layers has none such"):
            check(replace(EAGLE, taps=(tap,)), FACTS)

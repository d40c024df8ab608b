"""What can be wrong with a model, a Store, a budget or a machine: one line that says what to do, no traceback."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from understudy.codecs import CODECS
from understudy.frontends import main

Fail = Callable[..., str]


@pytest.fixture
def checkpoint(tmp_path: Path, tiny: Path) -> Path:
    """A small checkpoint of one's own, to break."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


@pytest.fixture
def fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fail:
    """Run a command that must fail; what it said on its one line."""
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(status: int, *words: str) -> str:
        capsys.readouterr()
        assert main([*words]) == status
        out, err = capsys.readouterr()
        assert out == ""
        last = err.splitlines()[-1]
        assert last.startswith("understudy: ") and err.count("understudy: ") == 1, err
        assert "Traceback" not in err and len(last) < 400
        return last

    return run


def change_config(checkpoint: Path, **values: object) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_directory_without_a_config(fails: Fail, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "config.json" in fails(1, "run", str(tmp_path / "empty"), "x")


def test_a_truncated_file(fails: Fail, checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "model.safetensors" in fails(1, "run", str(checkpoint), "x")


def test_a_missing_shard(fails: Fail, checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00002.safetensors")}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00001-of-00002.safetensors" in fails(1, "run", str(checkpoint), "x")


def test_no_weights_at_all(fails: Fail, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    assert "safetensors" in fails(1, "plan", str(checkpoint))


def test_a_weight_that_is_no_number(fails: Fail, checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 5] = torch.nan
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    assert name in fails(1, "prepare", str(checkpoint))


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"model_type": "diffllama"}, "computes attention more than once in a layer"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "t5"),
        ({"model_type": "no-such-kind"}, "no-such-kind"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 3}}, "quantised"),
    ],
)
def test_a_kind_of_model_that_cannot_be_run(
    fails: Fail, checkpoint: Path, values: dict[str, object], word: str
) -> None:
    change_config(checkpoint, **values)
    assert word in fails(1, "run", str(checkpoint), "x")


def test_a_model_that_is_not_on_this_machine(fails: Fail) -> None:
    assert "no-such-organisation/no-such-model" in fails(
        1, "run", "no-such-organisation/no-such-model", "x", "--offline"
    )


def test_a_damaged_store(fails: Fail, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    assert main(["prepare", str(checkpoint), "--output", str(store)]) == 0
    residual = bytearray((store / "residual.bin").read_bytes())
    residual[5000] ^= 1
    (store / "residual.bin").write_bytes(residual)
    assert "residual.bin" in fails(1, "run", str(store), "x", "--resident", "none", "--max-new-tokens", "2")
    (store / "residual.bin").write_bytes(residual[:4096])
    assert "residual.bin" in fails(1, "run", str(store), "x")
    (store / "index.json").write_text("{")
    assert "index.json" in fails(1, "run", str(store), "x")


@pytest.mark.parametrize("name", ["substitute.bin", "residual.bin", "shared.bin"])
def test_verify_finds_a_flipped_bit_in_any_file(fails: Fail, checkpoint: Path, tmp_path: Path, name: str) -> None:
    store = tmp_path / "store"
    assert main(["prepare", str(checkpoint), "--output", str(store), "--codec", "delta"]) == 0
    assert main(["verify", str(store)]) == 0
    data = bytearray((store / name).read_bytes())
    # The room between weights is zero.
    place = next(place for place in range(len(data) // 3, len(data)) if data[place])
    data[place] ^= 16
    (store / name).write_bytes(data)
    assert name in fails(1, "verify", str(store))


@pytest.mark.parametrize(
    ("name", "values", "word"),
    [
        ("tokenizer.json", {"pre_tokenizer": {"type": "Nonesuch"}}, "PreTokenizer"),
        ("tokenizer_config.json", {"eos_token": 3}, "eos_token"),
        ("generation_config.json", {"temperature": "hot"}, "temperature"),
        ("generation_config.json", {"eos_token_id": "2"}, "eos_token_id"),
    ],
)
def test_a_small_file_that_cannot_be_used_is_told_before_anything_is_prepared(
    fails: Fail, checkpoint: Path, tmp_path: Path, name: str, values: dict[str, object], word: str
) -> None:
    content = json.loads((checkpoint / name).read_text()) if (checkpoint / name).exists() else {}
    (checkpoint / name).write_text(json.dumps(content | values))
    for words in (["run", str(checkpoint), "x"], ["chat", str(checkpoint)], ["prepare", str(checkpoint)]):
        if words[0] != "prepare" or name.startswith("tokenizer"):
            assert word in fails(1, *words)
    assert not list((tmp_path / "cache").glob("*/index.json")), "nothing was prepared"


def test_a_directory_without_a_generation_config(fails: Fail, checkpoint: Path, tmp_path: Path) -> None:
    assert "generation_config.json" in fails(2, "run", str(checkpoint), "x", "--generation-config", str(tmp_path))


def test_nowhere_to_write(fails: Fail, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "file" / "cache"))
    said = fails(1, "run", str(checkpoint), "x")
    assert str(tmp_path / "file") in said and "UNDERSTUDY_CACHE" in said


def test_too_little_memory(fails: Fail, checkpoint: Path) -> None:
    assert "MiB" in fails(2, "run", str(checkpoint), "x", "--memory", "50MiB")
    assert "MiB" in fails(2, "plan", str(checkpoint), "--memory", "50MiB")


def test_a_prompt_longer_than_the_context(fails: Fail, checkpoint: Path) -> None:
    assert "--context" in fails(2, "run", str(checkpoint), "x " * 100, "--context", "64")


def test_a_token_that_is_not_in_the_vocabulary(fails: Fail, checkpoint: Path) -> None:
    assert "123456" in fails(2, "run", str(checkpoint), "--prompt-ids", "1,123456")


@pytest.mark.parametrize(
    ("option", "value", "hint"),
    [
        ("--method", "subsitute", "Did you mean 'substitute'"),
        ("--method", "substitute:widht=3,depth=2", "Did you mean 'width'"),
        ("--method", "substitute:width=wide,depth=2", "wide"),
        ("--codec", "rwa", "Did you mean 'raw'"),
        ("--bits", "5", "4"),
    ],
)
def test_an_option_that_means_nothing(fails: Fail, checkpoint: Path, option: str, value: str, hint: str) -> None:
    assert hint in fails(2, "run", str(checkpoint), "x", option, value)


def test_exporting_what_is_no_store(fails: Fail, tmp_path: Path) -> None:
    assert "missing" in fails(1, "export", str(tmp_path / "missing"), str(tmp_path / "out"))


@pytest.mark.parametrize("codec", CODECS)
def test_what_was_prepared_turns_back_into_the_checkpoint(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], codec: str
) -> None:
    assert main(["prepare", str(checkpoint), "--output", str(tmp_path / "store"), "--quiet", "--codec", codec]) == 0
    assert main(["export", str(tmp_path / "store"), str(tmp_path / "again"), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    before, after = load_file(checkpoint / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].view(torch.uint8), after[name].view(torch.uint8)) for name in before)

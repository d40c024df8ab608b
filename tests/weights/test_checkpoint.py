"""A checkpoint is read in place; what is wrong with it is said in one line that names the file."""

import json
from pathlib import Path

import pytest
import torch

from understudy.errors import CheckpointError
from understudy.weights.checkpoint import Checkpoint

from .made import tensors, write


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_reads_every_tensor(tmp_path: Path, shards: int, dtype: torch.dtype) -> None:
    made = tensors(dtype)
    checkpoint = Checkpoint.open(write(tmp_path / "model", made, shards))
    assert set(checkpoint.tensors) == set(made)
    assert checkpoint.config["model_type"] == "outline"
    for name, tensor in made.items():
        assert torch.equal(checkpoint.read(name), tensor)
        assert torch.equal(checkpoint.read_rows(name, 1, 5), tensor[1:5])


def test_fingerprint_sees_weights_config_and_tokenizer(tmp_path: Path) -> None:
    made = tensors()
    path = write(tmp_path / "model", made)
    first = Checkpoint.open(path).fingerprint
    assert Checkpoint.open(write(tmp_path / "copy", made)).fingerprint == first
    (path / "tokenizer.json").write_text('{"other": 1}')
    second = Checkpoint.open(path).fingerprint
    made["layers.0.up.weight"] = made["layers.0.up.weight"] + 1
    third = Checkpoint.open(write(path, made)).fingerprint
    assert len({first, second, third}) == 3


def _cut(path: Path) -> None:
    file = path / "model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _lose(path: Path) -> None:
    (path / "model-00002-of-00003.safetensors").unlink()


def _garble(path: Path) -> None:
    file = path / "model-00002-of-00003.safetensors"
    data = bytearray(file.read_bytes())
    data[8:12] = b"oops"
    file.write_bytes(bytes(data))


def _huge_header(path: Path) -> None:
    file = path / "model-00002-of-00003.safetensors"
    file.write_bytes(b"\xff" * 7 + b"\x00" + file.read_bytes()[8:])


def _empty(path: Path) -> None:
    (path / "model-00002-of-00003.safetensors").write_bytes(b"")


@pytest.mark.parametrize("damage", [_cut, _lose, _garble, _huge_header, _empty])
def test_broken_shard_is_named(tmp_path: Path, damage: object) -> None:
    path = write(tmp_path / "model", tensors(), shards=3)
    damage(path)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003") as caught:
        Checkpoint.open(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_shard_that_links_to_nothing_is_named_with_what_it_links_to(shards: int, tmp_path: Path) -> None:
    path = write(tmp_path / "model", tensors(), shards=shards)
    file = sorted(path.glob("*.safetensors"))[-1]
    file.unlink()
    file.symlink_to(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=f"^{file} is a link to {tmp_path / 'gone'}, which is not there"):
        Checkpoint.open(path)


def test_tensor_that_the_index_puts_elsewhere_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "model", tensors(), shards=2)
    file = path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["ghost.weight"] = "model-00001-of-00002.safetensors"
    file.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"ghost\.weight"):
        Checkpoint.open(path)


def test_missing_tensor_and_truncation_after_opening(tmp_path: Path) -> None:
    path = write(tmp_path / "model", tensors())
    checkpoint = Checkpoint.open(path)
    with pytest.raises(CheckpointError, match=r"nothing\.here"):
        checkpoint.read("nothing.here")
    with (path / "model.safetensors").open("r+b") as file:
        file.truncate(3000)
    with pytest.raises(CheckpointError, match="ends at byte"):
        checkpoint.read("layers.1.up.weight")


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_bad_config(tmp_path: Path, content: str | None) -> None:
    path = write(tmp_path / "model", tensors())
    (path / "config.json").unlink()
    if content is not None:
        (path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        Checkpoint.open(path)


def test_no_safetensors(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="save_pretrained"):
        Checkpoint.open(tmp_path)


def test_a_tensor_of_an_unknown_type_is_known_by_its_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "model", tensors())
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"BF16"', b'"BF15"'))
    info = Checkpoint.open(path).info("embed.weight")
    assert (info.kind, info.dtype, info.shape) == ("BF15", torch.uint8, (info.nbytes,))
    assert info.nbytes == 200 * 128 * 2


def test_a_shape_that_does_not_fit_the_bytes_is_refused_unless_the_type_is_unknown(tmp_path: Path) -> None:
    path = write(tmp_path / "model", {"one": torch.zeros(4, dtype=torch.float32)})
    file = path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b'"F32"', b'"F16"'))
    with pytest.raises(CheckpointError, match="not its shape's"):
        Checkpoint.open(path)
    file.write_bytes(whole.replace(b'"F32"', b'"F4x"'))
    assert Checkpoint.open(path).info("one").nbytes == 16

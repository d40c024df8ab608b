"""A checkpoint is read in place; what is wrong with it is said in one line that names the file."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from understudy.errors import CheckpointError
from understudy.weights.checkpoint import Checkpoint
from understudy.weights.layout import LinearSpec

from .made import layout, mixture, tall, tensors, write


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


@pytest.mark.parametrize("band", [1, 1000, 1 << 20])
def test_rows_of_a_weight_may_be_columns_of_its_tensor(band: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("understudy.weights.checkpoint.BAND", band)
    name, tensor = "layers.0.up.weight", tensors()["layers.0.up.weight"]
    checkpoint = Checkpoint.open(write(tmp_path / "model", tensors()))
    rows, columns = tensor.shape
    assert torch.equal(checkpoint.weight_rows(LinearSpec("up", name, (rows, columns)), 3, 70), tensor[3:70])
    turned = LinearSpec("up", name, (columns, rows), turned=True)
    found = checkpoint.weight_rows(turned, 3, 70)
    assert turned.stored_shape == (rows, columns) and found.is_contiguous() and torch.equal(found, tensor.T[3:70])


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


def _save_shard(path: Path, name: str, made: dict[str, torch.Tensor]) -> None:
    save_file(made, path / name, {"format": "pt"})


def test_a_whole_file_is_the_model_though_an_earlier_one_left_its_index(tmp_path: Path) -> None:
    """As for transformers, which looks for model.safetensors first: the shards, there or not, are another model's."""
    earlier, made = tensors(), {name: tensor + 1 for name, tensor in tensors().items()}
    path = write(tmp_path / "model", earlier, shards=3)
    write(path, made)
    assert torch.equal(Checkpoint.open(path).read("embed.weight"), made["embed.weight"])
    for shard in path.glob("model-*"):
        shard.unlink()
    assert torch.equal(Checkpoint.open(path).read("embed.weight"), made["embed.weight"])


def test_an_index_that_lists_the_whole_file_among_others_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "model", tensors())
    _save_shard(path, "model-mtp.safetensors", {"mtp.norm.weight": torch.ones(3)})
    listed = {**dict.fromkeys(tensors(), "model.safetensors"), "mtp.norm.weight": "model-mtp.safetensors"}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    assert set(Checkpoint.open(path).tensors) == {*tensors(), "mtp.norm.weight"}


@pytest.mark.parametrize("file", [["model-00001-of-00002.safetensors"], None, ""])
def test_an_index_that_names_no_file_is_refused(tmp_path: Path, file: object) -> None:
    path = write(tmp_path / "model", tensors(), shards=2)
    place = path / "model.safetensors.index.json"
    place.write_text(json.dumps({"weight_map": {**json.loads(place.read_text())["weight_map"], "embed.weight": file}}))
    with pytest.raises(CheckpointError, match=r"names no file for 'embed\.weight'"):
        Checkpoint.open(path)


def test_shards_in_another_directory_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "model", tensors(), shards=2)
    place = path / "model.safetensors.index.json"
    listed = json.loads(place.read_text())["weight_map"]
    place.write_text(json.dumps({"weight_map": {name: f"../model/{file}" for name, file in listed.items()}}))
    with pytest.raises(CheckpointError, match="which is no file beside it: put all shards in"):
        Checkpoint.open(path)


@pytest.mark.parametrize("name", ["model-{}-of-00003.safetensors", "model.safetensors-{}-of-00003.safetensors"])
def test_a_shard_that_the_names_of_others_count_is_missing(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "model", tensors(), shards=3)
    (path / "model.safetensors.index.json").unlink()
    for number in ("00001", "00002", "00003"):
        (path / f"model-{number}-of-00003.safetensors").rename(path / name.format(number))
    assert set(Checkpoint.open(path).tensors) == set(tensors())
    (path / name.format("00002")).unlink()
    with pytest.raises(CheckpointError, match=f"{name.format('00002')} is missing, though the names of others count it"):
        Checkpoint.open(path)


def test_two_copies_of_a_tensor_without_an_index_are_refused(tmp_path: Path) -> None:
    """A model in float32 and its running average, say: nothing tells which of them is meant."""
    path = write(tmp_path / "model", tensors())
    (path / "model.safetensors").rename(path / "model.ema.safetensors")
    assert set(Checkpoint.open(path).tensors) == set(tensors())
    _save_shard(path, "model.fp32.safetensors", {"embed.weight": torch.zeros(200, 128)})
    with pytest.raises(CheckpointError, match=r"'embed\.weight' is in .*model\.ema\.safetensors and in model\.fp32\.safetensors"):
        Checkpoint.open(path)


@pytest.mark.parametrize("last", [True, False])
def test_of_two_copies_in_shards_the_last_counts_where_the_index_says_so(tmp_path: Path, last: bool) -> None:
    """transformers takes the last one, whatever the index says."""
    path = write(tmp_path / "model", tensors(), shards=2)
    listed = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]
    first, second = sorted(set(listed.values()))
    kept, other = (second, first) if last else (first, second)
    name = next(name for name, file in listed.items() if file == kept)
    _save_shard(path, other, load_file(path / other) | {name: torch.full((3,), 7.0)})
    if last:
        assert torch.equal(Checkpoint.open(path).read(name), tensors()[name])
        return
    with pytest.raises(CheckpointError, match=rf"'{name}' is in .*{first} and in {second}"):
        Checkpoint.open(path)


def test_a_pointer_of_git_lfs_is_called_so(tmp_path: Path) -> None:
    path = write(tmp_path / "model", tensors(), shards=2)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 123456789\n"
    (path / "model-00002-of-00002.safetensors").write_text(pointer)
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors is only a pointer of Git LFS .*git lfs pull"):
        Checkpoint.open(path)


@pytest.mark.parametrize(
    ("name", "words"), [("model.safetensors", "give the directory it lies in"), ("model-q4.gguf", "is GGUF, which")]
)
def test_a_file_in_the_place_of_a_directory_is_refused(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=rf"{name} is a file: .*{words}"):
        Checkpoint.open(tmp_path / name)


@pytest.mark.parametrize("pieces", [True, False])
def test_rows_of_experts_are_those_of_their_tensors_one_after_another(pieces: bool, tmp_path: Path) -> None:
    made = mixture(pieces)
    checkpoint = Checkpoint.open(write(tmp_path / "model", made, shards=4))
    halves = next(spec for spec in layout(checkpoint).linears if spec.experts)
    whole = tall(made, halves)
    assert (len(halves.pieces), halves.experts, halves.unit) == ((10, 5, 64) if pieces else (0, 5, 128))
    assert checkpoint.weight_dtype(halves) == torch.bfloat16
    assert checkpoint.weight_bytes(halves) == whole.nbytes
    for start, stop in ((0, 640), (3, 70), (63, 64), (64, 128), (127, 513), (640, 640), (10, 10)):
        found = checkpoint.weight_rows(halves, start, stop)
        assert torch.equal(found, whole[start:stop]) and found.shape == (stop - start, 128)
    if pieces:
        places = checkpoint.places(halves, 60, 200)
        assert [(info.name, count) for info, _, count in places] == list(zip(halves.pieces[:4], (4, 64, 64, 8), strict=True))
        assert len({info.file for info, _, _ in places}) > 1


def test_experts_of_several_types_are_named(tmp_path: Path) -> None:
    made = mixture(pieces=True)
    made["layers.0.experts.3.w3.weight"] = made["layers.0.experts.3.w3.weight"].to(torch.float16)
    checkpoint = Checkpoint.open(write(tmp_path / "model", made))
    halves, last = (spec for spec in layout(checkpoint).linears if spec.module.startswith("layers.0.experts"))
    with pytest.raises(CheckpointError, match=r"layers\.0\.experts\.3\.w3\.weight is float16, and .*0\.w1\.weight bfloat16"):
        checkpoint.weight_dtype(halves)
    assert checkpoint.weight_dtype(last) == torch.bfloat16
    gone = replace(last, pieces=(*last.pieces[:-1], "layers.0.experts.9.w2.weight"))
    for ask in (checkpoint.weight_dtype, checkpoint.weight_bytes):
        with pytest.raises(CheckpointError, match=r"no tensor 'layers\.0\.experts\.9\.w2\.weight'"):
            ask(gone)


def test_rows_of_experts_that_are_stored_transposed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """[experts, in, out]: rows of an expert are columns of its matrix, read a few lines at a time."""
    stored = torch.randn(5, 96, 128, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    checkpoint = Checkpoint.open(write(tmp_path / "model", {"experts.both": stored, **mixture(pieces=False)}))
    spec = LinearSpec("experts.both", "experts.both", (5 * 128, 96), turned=True, experts=5, chosen=2)
    assert spec.stored_shape == (5, 96, 128) and (spec.outputs, spec.unit) == (128, 128)
    whole = stored.transpose(1, 2).reshape(640, 96)
    for band in (1 << 20, 3 * 256):
        monkeypatch.setattr("understudy.weights.checkpoint.BAND", band)
        for start, stop in ((0, 128), (64, 128), (128, 192), (512, 640), (577, 600)):
            assert torch.equal(checkpoint.weight_rows(spec, start, stop), whole[start:stop])

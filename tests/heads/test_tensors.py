"""Files of a head's tensors: which is read, and that names, types and shapes need no values."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from understudy.errors import CheckpointError
from understudy.heads.tensors import described, tensors_in, weight_files

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3).bfloat16(), "d2t": torch.tensor([4, 5]), "t2d": torch.tensor([True, False])}


@pytest.mark.parametrize("file", ["model.safetensors", "medusa_lm_head.safetensors", "pytorch_model.bin", "medusa_lm_head.pt"])
def test_all_files_are_read_alike(file: str, tmp_path: Path) -> None:
    (save_file if file.endswith("safetensors") else torch.save)(TENSORS, tmp_path / file)
    found, told = tensors_in(tmp_path), described(tmp_path)
    assert found.keys() == told.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(found[name], tensor)
        assert told[name].is_meta and (told[name].shape, told[name].dtype) == (tensor.shape, tensor.dtype)


def test_safetensors_are_taken_before_what_torch_saved(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    save_file({"other": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"] and set(tensors_in(tmp_path)) == {"other"}


def test_several_files_are_read_by_their_index(tmp_path: Path) -> None:
    for number, (name, tensor) in enumerate(TENSORS.items()):
        save_file({name: tensor}, tmp_path / f"part{number}.safetensors")
    index = {name: f"part{number}.safetensors" for number, name in enumerate(TENSORS)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert set(tensors_in(tmp_path)) == set(TENSORS)
    (tmp_path / "part1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"part1\.safetensors is missing"):
        described(tmp_path)


def test_what_holds_no_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no head: there is none of"):
        weight_files(tmp_path)
    for content in ([1, 2], {"a": "text"}):
        torch.save(content, tmp_path / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match="should hold tensors by their names"):
            tensors_in(tmp_path)

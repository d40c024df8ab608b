"""Tensors lie where a file's header says; a header that cannot be true is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from understudy.errors import CheckpointError
from understudy.weights.checkpoint import Checkpoint

from .made import tensors, write


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


def _header(file: Path) -> tuple[dict[str, Any], bytes]:
    data = file.read_bytes()
    count = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + count]), data[8 + count :]


@pytest.mark.parametrize("damage", ["overlap", "gap", "twice", "after"])
def test_a_file_whose_tensors_do_not_lie_one_after_another_is_refused(tmp_path: Path, damage: str) -> None:
    """The safetensors library refuses such files too."""
    path = write(tmp_path / "model", tensors())
    file = path / "model.safetensors"
    header, data = _header(file)
    if damage == "overlap":
        header["layers.0.up.weight"]["data_offsets"] = header["layers.1.up.weight"]["data_offsets"]
    elif damage == "gap":
        del header["layers.0.up.weight"]
    text = json.dumps(header)
    if damage == "twice":
        text = f'{text[:-1]}, "layers.0.up.weight": {json.dumps(header["layers.1.up.weight"])}}}'
    elif damage == "after":
        data += bytes(12)
    file.write_bytes(len(text).to_bytes(8, "little") + text.encode() + data)
    with pytest.raises(CheckpointError, match="12 bytes after its last" if damage == "after" else "begins at byte") as caught:
        Checkpoint.open(path)
    with pytest.raises(SafetensorError):
        load_file(file)
    assert "\n" not in str(caught.value)

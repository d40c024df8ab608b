"""Files of a head's tensors: which is read, and that names, types and shapes need no values."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.quantised import packed, to_fp8
from understudy.errors import CheckpointError
from understudy.heads import tensors
from understudy.heads.tensors import HeadTensors, Values, described, unpacked_chunks, weight_files
from understudy.kernels.pack import flat

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3).bfloat16(), "d2t": torch.tensor([4, 5]), "t2d": torch.tensor([True, False])}


@pytest.mark.parametrize("file", ["model.safetensors", "medusa_lm_head.safetensors", "pytorch_model.bin", "medusa_lm_head.pt"])
def test_all_files_are_read_alike(file: str, tmp_path: Path) -> None:
    (save_file if file.endswith("safetensors") else torch.save)(TENSORS, tmp_path / file)
    read, told = HeadTensors.of(tmp_path), described(tmp_path)
    found = read.tensors
    assert found.keys() == told.keys() == TENSORS.keys()
    assert found["a.weight"].is_meta == file.endswith("safetensors"), "matrices wait until they are asked for"
    for name, tensor in TENSORS.items():
        assert torch.equal(read.values(found[name]).whole(), tensor)
        assert told[name].is_meta and (told[name].shape, told[name].dtype) == (tensor.shape, tensor.dtype)


@given(shape=st.sampled_from([(7, 3), (1, 1), (12,), (5, 2, 2), ()]), chunk=st.integers(1, 50), rows=st.integers(1, 9))
def test_rows_come_in_order_however_a_file_is_read(shape: tuple[int, ...], chunk: int, rows: int) -> None:
    tensor = torch.randn(shape).bfloat16()
    values = Values(tensor.dtype, shape, lambda: flat(tensor).split(chunk))
    pieces = list(values.rows(rows))
    assert all(len(piece) == rows for piece in pieces[:-1]) and len(pieces) == -(-(shape or (1,))[0] // rows)
    assert torch.equal(torch.cat(pieces).view(shape), tensor) and torch.equal(values.whole(), tensor)


@pytest.mark.parametrize("block", [(32, 16), (1, 48), (70, 48)])
def test_codes_are_weights_however_they_are_read(block: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each few rows have the scales of their own blocks, of which the last may be cut off."""
    monkeypatch.setattr(tensors, "TOGETHER", 48 * 5)
    codes, scales = to_fp8(torch.randn(70, 48), block)
    how = replace(packed(codes, scales, block).codes, name="x", dtype=torch.bfloat16, packed=packed(codes, scales, block))
    each = scales.repeat_interleave(block[0], 0)[:70].repeat_interleave(block[1], 1)[:, :48]
    for chunk in (13, 48 * 70):
        found = torch.cat(list(unpacked_chunks(how, flat(codes.view(torch.uint8)).split(chunk), lambda _: scales)))
        assert torch.equal(found.view(torch.bfloat16).view(70, 48), (codes.float() * each).bfloat16())


def test_what_has_no_values_is_read_too() -> None:
    assert Values.of(torch.empty(0, 4)).whole().shape == (0, 4)


def test_a_file_that_ends_too_soon_is_told_of(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    read = HeadTensors.of(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="ends at byte"):
        read.values(read.tensors["a.weight"]).whole()


def test_safetensors_are_taken_before_what_torch_saved(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    save_file({"other": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"] and set(HeadTensors.of(tmp_path).tensors) == {"other"}


def test_several_files_are_read_by_their_index(tmp_path: Path) -> None:
    for number, (name, tensor) in enumerate(TENSORS.items()):
        save_file({name: tensor}, tmp_path / f"part{number}.safetensors")
    index = {name: f"part{number}.safetensors" for number, name in enumerate(TENSORS)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert set(HeadTensors.of(tmp_path).tensors) == set(TENSORS)
    (tmp_path / "part1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"part1\.safetensors is missing"):
        described(tmp_path)


def test_what_holds_no_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no head: there is none of"):
        weight_files(tmp_path)
    for content in ([1, 2], {"a": "text"}):
        torch.save(content, tmp_path / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match="should hold tensors by their names"):
            HeadTensors.of(tmp_path)

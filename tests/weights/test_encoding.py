"""A weight's pieces come in order, cover it, and hold what codec and quantiser say."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from understudy.codecs import codec
from understudy.errors import CheckpointError
from understudy.kernels.pack import block
from understudy.quantizers import quantizer
from understudy.weights.checkpoint import Checkpoint
from understudy.weights.encoding import Encoding, check_linear, check_weight, in_order, refuse_unusable, whole_bytes
from understudy.weights.layout import LinearSpec
from understudy.weights.shards import TensorInfo

from .made import layout, mixture, tensors, write

NAME = "layers.0.up.weight"


def _encoding(tmp_path: Path, codec_name: str, quantizer_name: str = "int4") -> Encoding:
    checkpoint = Checkpoint.open(write(tmp_path / "model", tensors()))
    return Encoding(checkpoint, LinearSpec("x", NAME, (384, 128)), quantizer(quantizer_name), codec(codec_name))


@pytest.mark.parametrize("ahead", [1, 3, 50])
def test_pieces_come_in_order_and_cover_the_weight(tmp_path: Path, ahead: int) -> None:
    encoding = _encoding(tmp_path, "raw")
    with ThreadPoolExecutor(4) as pool:
        pieces = list(in_order(pool, ahead, [(encoding, i, 1) for i in range(6)]))
    assert [piece.first_block for piece in pieces] == list(range(6))
    weight = encoding.checkpoint.read(NAME)
    assert torch.equal(torch.cat([piece.rows for piece in pieces]), weight)
    raw = torch.cat([piece.residual for piece in pieces if piece.residual is not None])
    assert torch.equal(raw.view(torch.bfloat16), block(weight).view(-1))
    merged = encoding.quantizer.merge([piece.substitute for piece in pieces])
    assert torch.equal(merged["codes"], encoding.quantizer.quantize(weight)["codes"])


def test_an_exact_substitute_leaves_no_residual(tmp_path: Path) -> None:
    assert _encoding(tmp_path, "raw", "exact").piece(0, 2).residual is None


def test_a_linked_piece_lies_in_the_source(tmp_path: Path) -> None:
    encoding = _encoding(tmp_path, "link")
    piece = encoding.piece(2, 3)
    stored = encoding.in_source(piece)
    content = Path(stored.file).read_bytes()[stored.offset : stored.offset + stored.nbytes]
    assert content == encoding.checkpoint.read(NAME)[128:320].contiguous().view(torch.uint8).numpy().tobytes()


def test_what_is_no_weight_of_floats_is_refused(tmp_path: Path) -> None:
    info = _encoding(tmp_path, "raw").info
    check_weight(info, info.shape)
    with pytest.raises(CheckpointError, match=rf"{NAME} is \[384, 128\], where the config asks for \[384, 64\]"):
        check_weight(info, (384, 64))
    with pytest.raises(CheckpointError, match=rf"{NAME} is uint16, where bfloat16.*not quantised"):
        check_weight(replace(info, dtype=torch.uint16), info.shape)
    with pytest.raises(CheckpointError, match=f"{NAME} is float64, where bfloat16.*load the model in float32 and save it"):
        check_weight(replace(info, dtype=torch.float64), info.shape)
    with pytest.raises(CheckpointError, match=f"{NAME} is F4, where"):
        check_weight(replace(info, dtype=torch.uint8, unknown="F4"), info.shape)
    refuse_unusable(info, torch.ones(3))
    with pytest.raises(CheckpointError, match=rf"{NAME}.*NaN"):
        refuse_unusable(info, torch.tensor([1.0, float("nan"), float("inf")]))
    with pytest.raises(CheckpointError, match=rf"{NAME}.*infinity"):
        refuse_unusable(info, torch.tensor([1.0, float("-inf")]))


def test_a_whole_weight_has_whole_blocks() -> None:
    assert whole_bytes(LinearSpec("up", NAME, (65, 10)), torch.float32) == 128 * 10 * 4


@pytest.mark.parametrize("pieces", [True, False])
def test_a_linked_piece_of_experts_lies_in_the_tensor_that_has_it(pieces: bool, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write(tmp_path / "model", mixture(pieces, rows=128), shards=4))
    for spec in (spec for spec in layout(checkpoint).linears if spec.experts):
        encoding = Encoding(checkpoint, spec, quantizer("int4"), codec("link"))
        assert len(encoding.parts) == spec.shape[0] // spec.unit
        files = set()
        for first, blocks in encoding.parts:
            piece = encoding.piece(first, blocks)
            stored = encoding.in_source(piece)
            content = Path(stored.file).read_bytes()[stored.offset : stored.offset + stored.nbytes]
            assert content == piece.rows.view(torch.uint8).numpy().tobytes()
            files.add(stored.file)
        assert len(files) > 1 if pieces else len(files) == 1


def test_experts_that_cannot_be_stored_are_refused(tmp_path: Path) -> None:
    def infos(spec: LinearSpec) -> list[TensorInfo]:
        return [checkpoint.info(name) for name in spec.tensors]

    checkpoint = Checkpoint.open(write(tmp_path / "odd", mixture(pieces=True, rows=96)))
    halves, last = (spec for spec in layout(checkpoint).linears if spec.module.startswith("layers.1.experts"))
    with pytest.raises(CheckpointError, match=r"each matrix of layers\.1\.experts\.halves has 96 rows.* multiple of 64") as caught:
        check_linear(halves, infos(halves))
    assert "\n" not in str(caught.value)
    check_linear(last, infos(last))
    other = [*infos(last)[:-1], replace(infos(last)[-1], dtype=torch.float32)]
    with pytest.raises(CheckpointError, match=r"float32, and .* bfloat16: a layer's experts must be of one type"):
        check_linear(last, other)
    checkpoint = Checkpoint.open(write(tmp_path / "whole", mixture(pieces=False, rows=96)))
    halves = next(spec for spec in layout(checkpoint).linears if spec.experts)
    check_linear(halves, infos(halves))
    with pytest.raises(CheckpointError, match=r"is \[5, 192, 128\], where the config asks for \[4, 192, 128\]"):
        check_linear(replace(halves, shape=(4 * 192, 128), experts=4), infos(halves))

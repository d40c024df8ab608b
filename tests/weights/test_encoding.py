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
from understudy.weights.encoding import Encoding, check_weight, in_order, refuse_unusable, whole_bytes
from understudy.weights.layout import LinearSpec

from .made import tensors, write

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

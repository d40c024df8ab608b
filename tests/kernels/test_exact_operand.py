"""An operand knows where its weights lie, and stands for the same ones when their bytes lie elsewhere."""

import torch

from understudy.codecs import Encoded, codec
from understudy.kernels.exact_operand import MOVED, Operand
from understudy.kernels.pack import block
from understudy.quantizers import quantizer


def made(name: str, dtype: torch.dtype = torch.bfloat16) -> tuple[Operand, torch.Tensor]:
    """An operand of two blocks of weights of `dtype` stored by codec `name`, and its bytes."""
    weight = torch.randn(128, 256, generator=torch.Generator().manual_seed(1)).to(dtype) * 0.05
    tensors = quantizer("int4").quantize(weight)
    data = codec(name).encode(block(weight), tensors)
    return codec(name).operand(Encoded(data, 2, 256, dtype, tensors)), data


def places(operand: Operand) -> list[int]:
    return [operand.weights, *(getattr(operand._described, name) for name in MOVED)]


def test_it_moves_with_its_bytes() -> None:
    for name, dtype, addresses in (("raw", torch.bfloat16, 1), ("delta", torch.bfloat16, 3), ("delta", torch.float16, 4)):
        operand, data = made(name, dtype)
        before = places(operand)
        description, codes, trailing = operand.description, operand._described.codes, operand._described.trailing
        assert bool(trailing) == (dtype == torch.float16)
        assert sum(place > 0 for place in before) >= addresses
        assert operand.lies_in(data) and not operand.lies_in(data.clone())
        other = data.clone()
        by = other.data_ptr() - data.data_ptr()
        operand.move(by, other)
        assert places(operand) == [place + by if place else 0 for place in before], "where nothing lies nothing moves"
        assert operand._described.trailing == (trailing + by if trailing else 0)
        assert operand.lies_in(other) and not operand.lies_in(data)
        assert (operand.description, operand._described.codes) == (description, codes), "the copy stays where it is"

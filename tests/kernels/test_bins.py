"""A weight that its code was rounded to lies in the code's bin, and its place there takes few bits."""

import pytest
import torch

from understudy.kernels.bins import DENSE, MOST
from understudy.kernels.pack import block
from understudy.kernels.residual import SLACK, encode
from understudy.quantizers import quantizer


@pytest.mark.parametrize(("spec", "bits"), [("int4", 7.6), ("int3", 8.7), ("int2", 9.8), ("int8", 4.2)])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_most_weights_lie_in_their_bins(spec: str, bits: float, size: float) -> None:
    weight = (torch.randn(64, 512, generator=torch.Generator().manual_seed(1)) * size).to(torch.bfloat16)
    made = quantizer(spec).quantize(weight)
    residual = encode(block(weight), made["codes"], made["scales"])
    stream = residual.stream.numel() - SLACK
    exceptions = residual.exceptions.shape[0]
    assert exceptions < 0.02 * weight.numel()
    assert 8 * (residual.dense.numel() + stream + residual.exceptions.nbytes) / weight.numel() < bits + 0.3


@pytest.mark.parametrize("spec", ["int2", "int3", "int4", "int6", "int8"])
def test_what_every_code_stands_for_is_in_its_bin(spec: str) -> None:
    """Only what is next to nothing in a bin that holds zero lies further from its ends than a place can say."""
    maker = quantizer(spec)
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    made = maker.quantize(weight)
    told = maker.dequantize(made, (64, 256)).to(torch.bfloat16)
    residual = encode(block(told), made["codes"], made["scales"])
    table = residual.table.to(torch.int64)
    tiles, groups = len(table) - 1, made["scales"].float()
    for g in range(tiles):
        scales = groups[g * len(groups) // tiles]
        for place, word in residual.exceptions[table[g, 1] : table[g + 1, 1]].to(torch.int64).tolist():
            value = torch.tensor([word - (word >> 15 << 16)], dtype=torch.int16).view(torch.bfloat16).item()
            assert abs(value) < scales[place % 64, 0] / 64
    # one code of 8 bits stands for zero itself
    assert len(residual.exceptions) < told.numel() // (80 if spec == "int8" else 300)


def test_a_place_has_its_dense_bits_first_and_never_more_than_the_widest() -> None:
    assert all(0 < dense < 8 < MOST for dense in DENSE.values())
    assert sorted(DENSE.values(), reverse=True) == [DENSE[2], DENSE[3], DENSE[4], DENSE[6], DENSE[8]]

"""Groups of columns with a scale each: as large as asked for, or the largest smaller size that divides the columns."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from understudy.errors import UsageError
from understudy.quantizers import quantizer

SPECS = [("int2", 2), ("int2:group=16", 2), ("int3", 3), ("int3:group=128", 3), ("int4", 4), ("int4:group=256", 4), ("int6", 6)]


@given(st.sampled_from(SPECS), st.integers(1, 100))
def test_the_group_divides_the_columns_and_is_the_largest_that_may_be(spec: tuple[str, int], sixteenths: int) -> None:
    made: Any = quantizer(spec[0])
    columns = 16 * sixteenths
    assert made.applies(1, columns) == (columns % made.groups[0] == 0)
    if made.applies(1, columns):
        group = made.group_for(columns)
        assert columns % group == 0 and group in made.groups and group <= made.group
        assert not [other for other in made.groups if group < other <= made.group and columns % other == 0]


@pytest.mark.parametrize(("spec", "bits"), SPECS)
@pytest.mark.parametrize("shape", [(1, 64), (70, 96), (128, 256)])
def test_tensors_are_of_the_shapes_that_kernels_read(spec: str, bits: int, shape: tuple[int, int]) -> None:
    made: Any = quantizer(spec)
    tensors = made.quantize(torch.randn(shape))
    blocks, group = -(-shape[0] // 64), made.group_for(shape[1])
    assert tensors["codes"].shape == (blocks, shape[1], 8 * bits) and tensors["codes"].dtype == torch.uint8
    assert tensors["scales"].shape == (shape[1] // group, blocks * 64, 2) and tensors["scales"].dtype == torch.bfloat16
    assert made.grouped and made.bits == bits


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_weight_of_few_values_in_a_group_is_kept(bits: int) -> None:
    """As many values as there are codes, evenly apart: nothing needs to be lost."""
    values = torch.arange(1 << bits).float() - 3
    weight = values[torch.arange(64 * 128) % len(values)].view(64, 128)
    made = quantizer(f"int{bits}")
    back = made.dequantize(made.quantize(weight), weight.shape)
    assert (back - weight).abs().max() < 0.05


@pytest.mark.parametrize("spec", ["int4:group=16", "int3:group=256", "int2:group=0"])
def test_a_group_that_cannot_be_is_named(spec: str) -> None:
    with pytest.raises(UsageError, match=rf"^{spec[:4]}: group must be one of .*, got {spec.partition('=')[2]}\.$"):
        quantizer(spec)

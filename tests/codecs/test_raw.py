"""`raw` is the weight's own bytes: decoding is a view of what arrived, and needs no substitute."""

import pytest
import torch

from understudy.codecs import Encoded, codec
from understudy.kernels.exact_product import BlockProduct, applies
from understudy.kernels.pack import block
from understudy.tiers.memory import arena

RAW = codec("raw")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_decoding_takes_no_room(dtype: torch.dtype) -> None:
    blocks = block(torch.randn(130, 48).to(dtype))
    data = RAW.encode(blocks, {})
    assert data.dtype == torch.uint8 and data.numel() == blocks.nbytes
    back = RAW.decode(Encoded(data, 3, 48, dtype, {}))
    assert back.data_ptr() == data.data_ptr() and torch.equal(back, blocks)
    assert RAW.bits(dtype, "int4") == 8 * dtype.itemsize
    assert RAW.in_place and not RAW.needs_substitute and not RAW.linked and not RAW.needs_triton


def test_on_a_device_it_decodes_alike_and_into_what_is_given() -> None:
    blocks = block(torch.randn(64, 32))
    out = torch.empty_like(blocks)
    data = RAW.encode(blocks, {})
    found = RAW.decode_on_device(Encoded(data, 1, 32, torch.float32, {}), out)
    assert found.data_ptr() == out.data_ptr() != data.data_ptr() and torch.equal(out, blocks)


@pytest.mark.skipif(not applies(torch.bfloat16, 32), reason="this processor does not multiply bfloat16")
def test_it_multiplies_where_the_bytes_lie() -> None:
    weight = torch.randn(128, 32, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    data = arena(weight.nbytes)[: weight.nbytes].copy_(RAW.encode(block(weight), {}))
    operand = RAW.operand(Encoded(data, 2, 32, torch.bfloat16, {}))
    assert operand.weights == data.data_ptr() and (operand.blocks, operand.columns) == (2, 32)
    x, out = torch.randn(3, 32).to(torch.bfloat16), torch.zeros(3, 2, 64, dtype=torch.bfloat16)
    BlockProduct([(operand, 0)])([x], out)
    torch.testing.assert_close(out.view(3, -1).float(), x.float() @ weight.float().T, rtol=0.02, atol=0.05)

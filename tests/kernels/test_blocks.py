"""What fused blocks are made of on the processor: what can be joined is, and levels that see much go another way."""

import torch

from understudy.kernels import blocks
from understudy.kernels.draft_product import Product
from understudy.quantizers import quantizer
from understudy.tree import Nodes, TokenTree


def product(rows: int, columns: int, group: int) -> Product:
    tensors = quantizer(f"int4:group={group}").quantize(torch.randn(rows, columns))
    return Product(tensors["codes"], tensors["scales"], rows)


def test_products_of_one_input_are_joined_and_others_are_not() -> None:
    kernels = blocks.ProcessorBlocks()
    first, second = product(64, 128, 64), product(32, 128, 64)
    x = torch.randn(3, 128)
    joined = kernels.join([first, second], None, [None, None], gated=False)
    assert joined is not None
    assert torch.equal(joined(x), torch.cat([first(x), second(x)], 1))
    assert kernels.join([first, product(64, 128, 32)], None, [None, None], gated=False) is None
    assert kernels.join([first, product(64, 64, 64)], None, [None, None], gated=False) is None
    assert kernels.join([first, lambda x: x], None, [None, None], gated=False) is None


def test_what_a_level_sees_decides() -> None:
    nodes = Nodes.of(TokenTree.chain([1, 2, 3, 4]), 0, blocks.MANY // 4 - 4)
    assert blocks.ProcessorBlocks().suits(nodes)
    assert not blocks.ProcessorBlocks().suits(Nodes.of(TokenTree.chain([1, 2, 3, 4]), 0, blocks.MANY // 4 - 3))

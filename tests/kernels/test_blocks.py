"""What fused blocks are made of on the processor: what can be joined is, and levels that see much go another way."""

from dataclasses import replace

import torch

from understudy.kernels import blocks
from understudy.kernels.attention import AttentionSpec
from understudy.kernels.draft_experts import ExpertProduct
from understudy.kernels.draft_product import Product
from understudy.kernels.head_form import HeadForm
from understudy.kernels.join_form import PLAIN, GateKind, JoinForm
from understudy.quantizers import quantizer
from understudy.tree import Nodes, TokenTree


def product(rows: int, columns: int, group: int) -> Product:
    tensors = quantizer(f"int4:group={group}").quantize(torch.randn(rows, columns))
    return Product(tensors["codes"], tensors["scales"], rows)


def test_products_of_one_input_are_joined_and_others_are_not() -> None:
    kernels = blocks.ProcessorBlocks()
    first, second = product(64, 128, 64), product(32, 128, 64)
    x = torch.randn(3, 128)
    joined = kernels.join([first, second], PLAIN)
    assert joined is not None
    assert torch.equal(joined(x), torch.cat([first(x), second(x)], 1))
    assert kernels.join([first, product(64, 128, 32)], PLAIN) is None
    assert kernels.join([first, product(64, 64, 64)], PLAIN) is None
    assert kernels.join([first, lambda x: x], PLAIN) is None


def test_one_weight_of_both_halves_is_split_where_its_blocks_allow_it() -> None:
    kernels, gate = blocks.ProcessorBlocks(), JoinForm(gate=GateKind.SILU)
    joined = kernels.join([product(256, 64, 64)], gate)
    assert joined is not None and joined.outputs == 128 and joined.columns == 64
    assert kernels.join([product(320, 64, 64)], gate) is None
    assert kernels.join([product(256, 64, 64)], replace(gate, biases=[torch.ones(256)])) is None


def test_experts_run_in_one_call_where_no_block_holds_both_halves() -> None:
    def experts(rows: int, columns: int) -> ExpertProduct:
        tensors = quantizer("int4").quantize(torch.randn(2 * rows, columns))
        return ExpertProduct(tensors["codes"], tensors["scales"], 2)

    kernels, gate = blocks.ProcessorBlocks(), GateKind.SILU
    assert kernels.mixture(experts(256, 64), experts(64, 128), gate) is not None
    assert kernels.mixture(experts(192, 64), experts(64, 96), gate) is None
    assert kernels.mixture(experts(256, 64), experts(64, 64), gate) is None
    assert kernels.mixture(experts(256, 64), lambda x: x, gate) is None


def test_the_processor_attends_in_every_way() -> None:
    kernels = blocks.ProcessorBlocks()
    assert all(kernels.attends(HeadForm(AttentionSpec(1.0, softcap=cap), gated=cap > 0), 16) for cap in (0.0, 20.0))


def test_what_a_level_sees_decides() -> None:
    nodes = Nodes.of(TokenTree.chain([1, 2, 3, 4]), 0, blocks.MANY // 4 - 4)
    assert blocks.ProcessorBlocks().suits(nodes)
    assert not blocks.ProcessorBlocks().suits(Nodes.of(TokenTree.chain([1, 2, 3, 4]), 0, blocks.MANY // 4 - 3))

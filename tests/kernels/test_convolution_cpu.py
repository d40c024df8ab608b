"""The processor's short convolution: plain convolution along a path, the same bits whatever runs beside it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.test_tree import path_to, trees
from understudy.kernels import convolution_cpu
from understudy.kernels.convolution_cpu import convolve
from understudy.kernels.recurrence import convolve_anywhere
from understudy.recurrent import RecurrentShape, RecurrentState, Room
from understudy.tree import Nodes, TokenTree


def opened(channels: int, taps: int, dtype: torch.dtype, rows: int = 1, scratch: int = 64) -> RecurrentState:
    state = RecurrentState(RecurrentShape(channels, taps), Room(rows, scratch, dtype), lambda *_: None)
    state.inputs.fill_(torch.nan)
    return state


def drawn(channels: int, taps: int, count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs [count, channels], weight [channels, taps] and bias [channels]."""
    random = torch.Generator().manual_seed(count)
    sizes = ((count, channels), (channels, taps), (channels,))
    x, weight, bias = (torch.randn(*size, generator=random).to(dtype) for size in sizes)
    return x, weight, bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("channels", "taps", "biased"), [(5, 4, True), (300, 3, False), (512, 2, True)])
def test_a_text_is_convolved(channels: int, taps: int, biased: bool, dtype: torch.dtype) -> None:
    x, weight, bias = drawn(channels, taps, 150, dtype)
    held = torch.float32 if dtype == torch.float16 else dtype
    nodes = Nodes.of(TokenTree.chain([0] * 150), 0, 0)
    state = opened(channels, taps, held)
    parts = [convolve(x[at : at + 32], weight, bias if biased else None, state, nodes[at : at + 32]) for at in range(0, 150, 32)]
    padded = torch.nn.functional.pad(x.double().T[None], (taps - 1, 0))
    expected = torch.nn.functional.conv1d(padded, weight.double()[:, None], bias.double() if biased else None, groups=channels)[0].T
    found = torch.cat(parts)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, atol=2e-6, rtol=float(torch.finfo(dtype).eps))


@settings(max_examples=25, deadline=None)
@given(trees(30), st.integers(0, 200), st.sampled_from([(5, 4), (300, 3)]), st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_node_of_a_tree_has_the_bits_of_its_path_read_alone(
    tree: TokenTree, length: int, size: tuple[int, int], dtype: torch.dtype
) -> None:
    channels, taps = size
    x, weight, bias = drawn(channels, taps, length + len(tree), dtype)
    state = opened(channels, taps, dtype, 3, 100)
    for at in range(0, length, 32):
        count = min(32, length - at)
        convolve(x[at : at + count], weight, bias, state, Nodes.of(TokenTree.chain([0] * count), 1, at))
    nodes = Nodes.join([Nodes.of(tree, 1, length), Nodes.of(TokenTree.chain([0] * 3), 2, 0)])
    found = convolve(torch.cat([x[length:], x[:1].repeat(3, 1)]), weight, bias, state, nodes)
    path = torch.tensor(path_to(tree, len(tree) - 1))
    alone = opened(channels, taps, dtype)
    text = torch.cat([x[:length], x[length + path]])
    chain = Nodes.of(TokenTree.chain([0] * len(text)), 0, 0)
    bits = torch.cat([convolve(text[i : i + 1], weight, bias, alone, chain[i : i + 1]) for i in range(len(text))])
    assert torch.equal(found[path], bits[length:])
    other = opened(channels, taps, dtype)
    plain = [convolve_anywhere(text[i : i + 1], weight, bias, other, chain[i : i + 1]) for i in range(len(text))]
    torch.testing.assert_close(torch.cat(plain), bits, atol=2e-6, rtol=float(torch.finfo(dtype).eps))


def test_sharing_the_channels_out_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution_cpu, "SMALL", 0)
    x, weight, bias = drawn(700, 4, 32, torch.bfloat16)
    nodes = Nodes.of(TokenTree.chain([0] * 32), 0, 0)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(convolve(x, weight, bias, opened(700, 4, torch.bfloat16), nodes))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)

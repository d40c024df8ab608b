"""What a kernel keeps of logits without sorting them is what the processor keeps that sorts; on a GPU where there is one."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from tests.device import DEVICE
from understudy.kernels.gpu import filters
from understudy.kernels.gpu.filters import least_keys
from understudy.params import SamplingParams
from understudy.sampling import draws, joined, keep_likely

# Of the float32 sums of torch and of ours, at the edge of top-p.
ROUNDED = 1e-5
# Tokens, and how many of them a program reads at once: at most 17 such chunks, since a simulated program takes a while.
SIZES = [(tokens, chunk) for tokens in (2, 24, 100, 517, 3001) for chunk in (32, 64, 2048) if tokens <= 17 * chunk]


def numbered(scores: Tensor) -> Tensor:
    """Keys of scores float32 [n, vocabulary], as kernels make them."""
    bits = torch.where(scores == 0, 0.0, scores).view(torch.int32)
    order = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(torch.int64)
    return (order << 32) + 0x7FFFFFFF - torch.arange(scores.shape[1])


def kept(logits: Tensor, params: list[SamplingParams], **sizes: int) -> Tensor:
    """[n, vocabulary] Whether each token is kept; `sizes` are those of the kernels."""
    drawn = joined([draws(own, torch.zeros(1)) for own in params])
    there = {name: numbers.to(DEVICE) for name, numbers in drawn.items()}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in sizes.items():
            patch.setattr(filters, name, value)
        least = least_keys(logits.to(DEVICE), torch.arange(len(params), device=DEVICE), there).cpu()
    return numbered(tempered(logits, params)) >= least[:, None]


def tempered(logits: Tensor, params: list[SamplingParams]) -> Tensor:
    return torch.stack([row.float() / (own.temperature or 1.0) for row, own in zip(logits, params, strict=True)])


def edges(scores: Tensor, params: SamplingParams) -> Tensor:
    """[vocabulary] Tokens before which there is so nearly top_p that rounding decides."""
    limited = keep_likely(scores[None], SamplingParams(temperature=1.0, top_k=params.top_k))[0].double()
    ordered, order = limited.sort(descending=True, stable=True)
    likely = ordered.softmax(0)
    near = (likely.cumsum(0) - likely - params.top_p).abs() < ROUNDED
    return torch.zeros(len(scores), dtype=torch.bool).scatter(0, order, near)


@st.composite
def drawing(draw: Any) -> SamplingParams:
    return SamplingParams(
        temperature=draw(st.sampled_from([0.0, 0.1, 0.7, 1.0, 3.0])), min_p=draw(st.sampled_from([0.0, 0.0, 0.02, 0.5, 1.0])),
        top_p=draw(st.sampled_from([1.0, 1e-9, 0.3, 0.5, 0.8, 0.95, 0.9999])),
        top_k=draw(st.sampled_from([0, 0, 1, 2, 7, 40, 5000])),
    )  # fmt: skip


@settings(max_examples=40)
@given(
    params=st.lists(drawing(), min_size=1, max_size=5), sizes=st.sampled_from(SIZES),
    listed=st.sampled_from([1, 4, 32]), block=st.sampled_from([64, 4096]),
    levels=st.sampled_from([1, 2, 9, 10**6]), missing=st.sampled_from([0.0, 0.3, 1.0]), seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
)  # fmt: skip
def test_the_same_tokens_are_kept_as_by_sorting(
    params: list[SamplingParams], sizes: tuple[int, int], listed: int, block: int, levels: int, missing: float, seed: int,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    """Ties, signed zeros and minus infinity among them, whatever the sizes of the kernels, and beside other rows."""
    vocabulary, chunk = sizes
    chance = torch.Generator().manual_seed(seed)
    logits = ((torch.rand(len(params), vocabulary, generator=chance) * levels).floor() * (12 / levels)).to(dtype)
    logits[:, ::2] *= -1
    logits[torch.rand(logits.shape, generator=chance) < missing] = -torch.inf
    found = kept(logits, params, CHUNK=chunk, LISTED=listed, BLOCK=block)
    scores = tempered(logits, params)
    for row, own in enumerate(params):
        there = scores[row] > -torch.inf
        wanted = keep_likely(scores[row : row + 1], own)[0] > -torch.inf if own.filters else there
        differ = (found[row] & there) != wanted
        assert not (differ & ~edges(scores[row], own)).any()
        assert found[row, scores[row].argmax()] or not there.any()


def test_a_row_gets_the_same_alone_and_whether_or_not_what_was_listed_was_enough() -> None:
    logits = torch.randn(6, 3000, generator=torch.Generator().manual_seed(5)) * 2
    logits[0] *= 3
    params = [
        SamplingParams(temperature=heat, top_p=share, top_k=most)
        for heat, share, most in ((0.7, 0.9, 0), (1.4, 0.97, 0), (0.0, 0.5, 3), (1.0, 0.9, 50), (1.0, 1.0, 900), (2.0, 0.999, 2500))
    ]
    found = kept(logits, params)
    counts = found.sum(1).tolist()
    # 64 keys were listed: more are kept of some rows than of one chunk
    assert counts[0] < 32 < counts[1] and counts[2] == 3000 and counts[3] < 50 < 900 == counts[4] < counts[5] < 2500
    for row, own in enumerate(params):
        assert torch.equal(found[row : row + 1], kept(logits[row : row + 1], [own]))
    assert torch.equal(found, kept(logits, params, LISTED=1))
    assert torch.equal(found, kept(logits, params, LISTED=2048))


def test_of_equally_likely_tokens_top_p_keeps_the_lower_ones_and_top_k_all() -> None:
    logits = torch.zeros(2, 400)
    logits[:, 300:] = -1.0
    nucleus, most = SamplingParams(temperature=1.0, top_p=0.25), SamplingParams(temperature=1.0, top_k=5)
    for listed in (4, 32):
        found = kept(logits, [nucleus, most], CHUNK=64, LISTED=listed)
        total = 300 + 100 * 2.718281828**-1
        assert found[0].nonzero().flatten().tolist() == list(range(int(total / 4) + 1))
        assert found[1].nonzero().flatten().tolist() == list(range(300))


def test_a_row_with_what_is_no_number_harms_no_other() -> None:
    logits = torch.randn(3, 100, generator=torch.Generator().manual_seed(2))
    params = [SamplingParams(temperature=1.0, top_p=0.6, top_k=9, min_p=0.01)] * 3
    wanted = kept(logits, params)
    logits[0, 5], logits[1] = torch.nan, torch.inf
    found = kept(logits, params)
    assert torch.equal(found[2], wanted[2]) and 1 <= int(found[2].sum()) <= 9

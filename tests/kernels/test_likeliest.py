"""The best tokens of sampled rows are those that torch finds by sorting, whatever is kept and whatever the other rows are."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from understudy import sampling
from understudy.kernels import likeliest as module
from understudy.kernels.likeliest import likeliest
from understudy.params import SamplingParams
from understudy.sampling import NO_TOKEN, choose, offset, perturb

KEEPING: tuple[dict[str, Any], ...] = (
    {}, {"top_k": 1}, {"top_k": 7}, {"top_k": 10**6}, {"top_p": 0.9}, {"top_p": 0.05}, {"top_p": 0.999}, {"min_p": 0.1},
    {"min_p": 1.0}, {"top_k": 40, "top_p": 0.8}, {"top_k": 5, "top_p": 0.95, "min_p": 0.02},
    {"top_p": 0.99, "min_p": 0.4},
)  # fmt: skip


def by_torch(logits: Tensor, params: SamplingParams, positions: Tensor, count: int) -> tuple[Tensor, Tensor]:
    values, tokens = perturb(logits, params, positions).topk(count, dim=-1)
    return values, tokens


def by_kernel(logits: Tensor, params: SamplingParams, positions: Tensor, count: int) -> tuple[Tensor, Tensor]:
    keys = positions + offset(params.seed)
    return likeliest(logits / params.temperature, keys, count, params.top_k, params.top_p, params.min_p)


@settings(max_examples=120, deadline=None)
@given(
    vocabulary=st.sampled_from([6, 17, 200, 1024, 5000]), seed=st.integers(0, 2**40), keeping=st.sampled_from(KEEPING),
    temperature=st.sampled_from([0.01, 0.3, 1.0, 3.0]), spread=st.sampled_from([0.0, 0.5, 3.0, 30.0, 3000.0]),
    shift=st.sampled_from([0.0, -500.0, 1e4]), count=st.sampled_from([1, 6]), forbidden=st.booleans(),
)  # fmt: skip
def test_the_best_are_those_that_sorting_finds(
    vocabulary: int, seed: int, keeping: dict[str, Any], temperature: float, spread: float, shift: float, count: int,
    forbidden: bool,
) -> None:  # fmt: skip
    chance = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, vocabulary, generator=chance) * spread + shift
    if forbidden:
        logits[:, torch.rand(vocabulary, generator=chance) < 0.5] = -torch.inf
        logits[:, vocabulary // 2] = shift
    params = SamplingParams(temperature=temperature, seed=seed, **keeping)
    positions = torch.tensor([4, 5, 5])
    wanted, _ = by_torch(logits, params, positions, count)
    values, tokens = by_kernel(logits, params, positions, count)
    # Logarithms differ in their last bit at most, and sums at the edge of top-p.
    near = 1e-6 * (wanted.abs().nan_to_num(0, 0, 0) + 40)
    right = (values - wanted).abs() <= near
    assert (right | (values == wanted) | _at_the_edge(logits, params, wanted, values)).all()
    own = perturb(logits, SamplingParams(temperature=temperature, seed=seed), positions).gather(1, tokens)
    assert torch.allclose(own[values > -torch.inf], values[values > -torch.inf], rtol=1e-6, atol=1e-4)


def _at_the_edge(logits: Tensor, params: SamplingParams, wanted: Tensor, values: Tensor) -> Tensor:
    """Whether a row keeps another number of tokens where its share of the probability is a little smaller or larger."""
    if params.top_p == 1:
        return torch.zeros_like(values, dtype=torch.bool)
    kept = []
    for share in (params.top_p - 1e-5, params.top_p + 1e-5):
        other = SamplingParams(temperature=params.temperature, top_k=params.top_k, top_p=min(max(share, 1e-9), 1.0))
        kept.append((sampling.keep_likely(logits / params.temperature, other) > -torch.inf).sum(-1))
    return (kept[0] != kept[1])[:, None].expand_as(values)


@pytest.mark.parametrize("keeping", [{}, {"top_p": 0.9}, {"top_k": 20, "top_p": 0.95}])
def test_a_row_does_not_depend_on_the_others(keeping: dict[str, Any]) -> None:
    logits = torch.randn(11, 3000, generator=torch.Generator().manual_seed(1)) * 3
    params = SamplingParams(temperature=0.8, seed=5, **keeping)
    positions = torch.arange(11) // 2
    together = by_kernel(logits, params, positions, 6)
    alone = [by_kernel(logits[i : i + 1], params, positions[i : i + 1], 6) for i in range(11)]
    for number in range(2):
        assert torch.equal(together[number], torch.cat([found[number] for found in alone]))


def test_few_tokens_of_a_row_get_their_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is what makes it fast: a bound tells which."""
    flags = torch.zeros(module.CHUNK, dtype=torch.uint8).numpy()
    scores = torch.randn(module.CHUNK, generator=torch.Generator().manual_seed(2)).numpy() * 3
    base = module.np.uint64(12345)
    low, high = (module.np.float32(bound) for bound in (-1000.0, scores.max() + 3))
    nowhere = module.np.float32(-module.np.inf)
    assert module._hopeful(scores, base, module.np.uint64(0), nowhere, low, flags) == module.CHUNK
    assert module._hopeful(scores, base, module.np.uint64(0), nowhere, high, flags) < 12


def test_choices_use_it_and_logits_that_are_no_numbers_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(module, "likeliest", lambda scores, *rest: asked.append(len(scores)) or likeliest(scores, *rest))
    logits = torch.randn(10, 300, generator=torch.Generator().manual_seed(3))
    params = SamplingParams(temperature=0.7, top_p=0.9, seed=2)
    chosen = choose(logits, params, torch.arange(10))
    assert asked == [8, 2] and torch.equal(chosen, perturb(logits, params, torch.arange(10)).argmax(-1))
    for spoilt in (torch.nan, torch.inf):
        logits[9, 7] = spoilt
        again = choose(logits, params, torch.arange(10))
        assert again[9] == NO_TOKEN and torch.equal(again[:8], chosen[:8])
    assert asked == [8, 2, 8, 8]
    choose(logits, SamplingParams(temperature=0.7, top_k=sampling.MOST_KEPT + 1), torch.arange(8))
    choose(logits, SamplingParams(), torch.arange(8))
    assert asked == [8, 2, 8, 8]


def test_min_p_leaves_out_what_top_p_keeps() -> None:
    logits = torch.tensor([[0.0, -0.1, -2.0, -2.0, -2.0]])
    params = SamplingParams(temperature=1.0, seed=3, top_p=0.99, min_p=0.5)
    values, tokens = by_kernel(logits, params, torch.tensor([7]), 5)
    assert values[0].isfinite().tolist() == [True, True, False, False, False] and set(tokens[0, :2].tolist()) == {0, 1}


def test_of_scores_that_rounding_makes_equal_the_first_token_is_the_best() -> None:
    """Where scores are large, so many are as high as the best one that a bound without room for rounding loses the first."""
    params = SamplingParams(temperature=1.0, seed=11)
    positions = torch.arange(64)
    for size in (1e6, 1e7):
        logits = torch.full((64, 3000), size)
        # The bound comes from the highest score, which is the last one.
        logits[:, -1] += 8
        scores = perturb(logits, params, positions)
        best = scores.max(-1, keepdim=True).values
        assert ((scores == best).sum(-1) > 1).any(), "ties"
        values, tokens = by_kernel(logits, params, positions, 1)
        assert torch.equal(values, best) and torch.equal(tokens[:, 0], (scores == best).int().argmax(-1))

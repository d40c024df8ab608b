"""Sampling: exact in distribution, a function of (seed, position), filters as everyone means them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from understudy import sampling
from understudy.errors import UsageError
from understudy.params import SamplingParams
from understudy.sampling import choose, gumbel, keep_likely, perturb


def test_the_noise_is_gumbel() -> None:
    noise = gumbel(3, torch.arange(200), 1000).flatten().double()
    assert abs(noise.mean() - 0.5772) < 0.01 and abs(noise.var() - torch.pi**2 / 6) < 0.03
    assert torch.isfinite(noise).all()


@given(st.integers(0, 2**63 - 1), st.integers(0, 10_000))
def test_noise_depends_on_seed_and_position_alone(seed: int, position: int) -> None:
    one = gumbel(seed, torch.tensor([position]), 64)
    many = gumbel(seed, torch.tensor([5, position, 9]), 64)
    assert torch.equal(one[0], many[1])
    assert not torch.equal(one[0], gumbel(seed, torch.tensor([position + 1]), 64)[0])
    assert not torch.equal(one[0], gumbel((seed + 1) % 2**63, torch.tensor([position]), 64)[0])


@pytest.mark.parametrize(
    "params",
    [SamplingParams(temperature=1.0), SamplingParams(temperature=0.6, top_p=0.8), SamplingParams(temperature=1.5, top_k=3)],
)
def test_chosen_tokens_follow_the_distribution(params: SamplingParams) -> None:
    logits = torch.tensor([2.0, 1.5, 0.0, -1.0, 1.0, 0.5])
    expected = keep_likely(logits[None] / params.temperature, params).softmax(-1)[0].double()
    count = 40_000
    tokens = choose(logits.expand(count, -1), params, torch.arange(count))
    seen = torch.bincount(tokens, minlength=6).double()
    live = expected > 0
    chi_square = ((seen - count * expected)[live] ** 2 / (count * expected[live])).sum()
    assert seen[~live].sum() == 0
    assert chi_square < 25, f"chi-square {chi_square} over {int(live.sum()) - 1} degrees of freedom"


@settings(max_examples=50)
@given(
    st.lists(st.floats(-8, 8), min_size=2, max_size=30), st.integers(0, 10), st.floats(0.05, 1.0), st.floats(0.0, 0.9)
)
def test_filters_keep_the_likeliest_and_no_more_than_they_should(values: list[float], k: int, p: float, least: float) -> None:
    scores = torch.tensor([values])
    kept = torch.isfinite(keep_likely(scores, SamplingParams(temperature=1, top_k=k, top_p=p, min_p=least)))[0]
    assert bool(kept[scores[0] == scores.max()].any())
    probabilities = scores.softmax(-1)[0]
    if k:
        assert bool((scores[0][kept] >= scores[0].sort(descending=True).values[min(k, len(values)) - 1]).all())
    assert bool((probabilities[kept] >= least * probabilities.max() * (1 - 1e-4)).all())


def test_greedy_is_the_argmax() -> None:
    logits = torch.randn(5, 40)
    assert torch.equal(choose(logits, SamplingParams(), torch.arange(5)), logits.argmax(-1))


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-40, 1e-30, 1e-20])
def test_a_temperature_near_0_takes_the_likeliest(temperature: float) -> None:
    logits = torch.randn(5, 40) * 1e4
    for filters in ({}, {"top_p": 0.5}, {"top_k": 3, "min_p": 0.1}):
        params = SamplingParams(temperature=temperature, **filters)  # type: ignore[arg-type]
        assert torch.equal(choose(logits, params, torch.arange(5)), logits.argmax(-1))
        assert torch.equal(perturb(logits, params, torch.arange(5)).argmax(-1), logits.argmax(-1))


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1.0), ("top_p", 0.0), ("top_p", 1.5), ("top_k", -1), ("min_p", 2.0), ("max_new_tokens", 0), ("seed", -1)],
)
def test_values_without_sense_are_refused(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=name):
        SamplingParams(**{name: value})  # type: ignore[arg-type]


def test_a_single_stop_text_is_one_stop() -> None:
    assert SamplingParams(stop="end").stop == ("end",)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        SamplingParams(stop=("",))


def test_on_a_device_filters_always_see_as_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums that torch makes there depend on their number; a token may not."""
    vocabulary, seen = 100, []
    keep = sampling.keep_likely

    def noting(scores: Tensor, params: SamplingParams) -> Tensor:
        seen.append(len(scores))
        return keep(scores, params)

    monkeypatch.setattr(sampling, "keep_likely", noting)
    params = SamplingParams(temperature=0.7, top_p=0.9, top_k=5, seed=1)
    for device in ("meta", "cpu"):
        for count in (1, 3, 8, 11):
            logits, places = torch.randn(count, vocabulary, device=device), torch.arange(count, device=device)
            values, tokens = sampling.likeliest(logits, params, places, 3)
            assert values.shape == tokens.shape == (count, 3)
    assert seen == [8] * 5, "the processor's kernel sees each row alone"

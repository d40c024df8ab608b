"""Tokens that a kernel chooses for all nodes at once are those that torch chooses for each alone; on a GPU where there is one."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from tests.device import DEVICE
from understudy.kernels.gpu import token_choice
from understudy.kernels.gpu.token_choice import chosen_tokens
from understudy.params import SamplingParams
from understudy.sampling import NO_TOKEN, choose, draws, joined, perturb


@settings(max_examples=12)
@given(
    vocabulary=st.sampled_from([3, 24, 100, 517]), chunk=st.sampled_from([16, 64, 2048]), seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]), levels=st.sampled_from([2, 9, 10**6]), spoilt=st.booleans(),
)  # fmt: skip
def test_greedy_tokens_are_the_first_of_the_best_and_none_where_a_logit_is_no_number(
    vocabulary: int, chunk: int, seed: int, dtype: torch.dtype, levels: int, spoilt: bool
) -> None:
    chance = torch.Generator().manual_seed(seed)
    # few different scores: many are equal, signed zeros among them
    logits = ((torch.rand(5, vocabulary, generator=chance) * levels).floor() - levels // 2).to(dtype)
    logits[:, ::2] *= -1
    if spoilt:
        logits[1, vocabulary // 2] = torch.nan
        logits[2, vocabulary - 1] = torch.inf
        logits[3] = -torch.inf
        logits[4, 0] = -torch.inf
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_choice, "CHUNK", chunk)
        found = chosen_tokens(logits.to(DEVICE), draws(SamplingParams(), torch.arange(5)))
    assert torch.equal(found, choose(logits, SamplingParams(), torch.arange(5)))
    assert (found == NO_TOKEN).tolist() == [False, spoilt, spoilt, spoilt, False]


@pytest.mark.parametrize("vocabulary", [50, 3000])
@pytest.mark.parametrize("keeping", [{}, {"top_k": 4}, {"top_p": 0.7, "min_p": 0.05}])
def test_sampled_tokens_have_the_noise_of_their_places_whatever_the_other_rows_are(
    vocabulary: int, keeping: dict[str, Any]
) -> None:
    logits = torch.randn(40, vocabulary, generator=torch.Generator().manual_seed(1))
    params = [
        SamplingParams(temperature=heat, seed=seed, **(keeping if row % 2 else {}))
        for row, (heat, seed) in enumerate(((0.7, 3), (0.0, 4), (1.3, 2**62), (0.1, 0), (0.0, 1), (1.1, 9)))
    ]
    of_rows = [params[row % 6] for row in range(40)]
    positions = torch.arange(40) // 3
    drawn = [draws(of_rows[row], positions[row : row + 1]) for row in range(40)]
    there = logits.to(DEVICE)
    found = chosen_tokens(there, joined(drawn))
    alone = torch.cat([chosen_tokens(there[row : row + 1], drawn[row]) for row in range(40)])
    assert torch.equal(found, alone)
    assert torch.equal(found[7:20], chosen_tokens(there[7:20], joined(drawn[7:20])))
    for row in range(40):
        scores = perturb(logits[row : row + 1], of_rows[row], positions[row : row + 1])[0]
        # torch may round a logarithm otherwise, in its last bit
        assert scores[found[row]] >= scores.max() - 1e-6 * scores.max().abs() > -torch.inf
    assert (found != logits.argmax(-1)).sum() > 10

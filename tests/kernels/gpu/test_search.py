"""The best children of nodes, found in kernels chunk by chunk; on a GPU where there is one."""



import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from tests.device import DEVICE
from understudy.drafters.device_state import SCORES, SearchSizes
from understudy.drafters.kernel_search import KernelSearch
from understudy.drafters.pace import RANKS, Calibration
from understudy.drafters.policy import NO_SHAPE
from understudy.kernels.gpu import search as kernels
from understudy.kernels.search_columns import CHILDREN, FOUND
from understudy.sampling import BatchParams, perturb_batch
from understudy.tree import Nodes

SEEDS = (5, -7, 2**62)


def opened(rows: int) -> KernelSearch:
    """A search whose roots, one a row, are the nodes of a level."""

    def forward(nodes: Nodes) -> Tensor:
        raise AssertionError

    def make(nbytes: int) -> Tensor:
        return torch.zeros(nbytes, dtype=torch.uint8, device=DEVICE)

    search = KernelSearch(kernels.SearchKernels, forward, make, NO_SHAPE, SearchSizes(rows, 900, 2, 64, 4))
    given = search.given
    given["length"].copy_(torch.arange(rows) * 100)
    given["most"].fill_(50)
    given["remaining"].fill_(9)
    given["stops"].fill_(-1)
    given["inside"].fill_(Calibration().inside)
    given["belief"].copy_(torch.tensor(Calibration().weights).expand(rows, -1))
    given["offset"].copy_(torch.tensor(SEEDS[:rows] + (0,) * (rows - len(SEEDS))))
    search.begin(rows)
    search.kernels.begin(4, False)
    return search


def found(search: KernelSearch, logits: Tensor, sampled: bool, filtered: bool = False) -> tuple[Tensor, Tensor]:
    """Tokens and scores of the children of each root, FOUND of them."""
    search.kernels.add(search.kernels.best(logits.to(DEVICE), 0, sampled, filtered), 0)
    rows = len(search.given["row"])
    nodes, chances = (search.state[name][:rows, 0].cpu() for name in ("node", "node chances"))
    assert nodes[:, FOUND].eq(chances[:, SCORES:].gt(-torch.inf).sum(1)).all()
    return nodes[:, CHILDREN:], chances[:, SCORES:]


@settings(max_examples=12)
@given(
    vocabulary=st.sampled_from([3, 24, 100, 517]), chunk=st.sampled_from([16, 64, 2048]), seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]), levels=st.sampled_from([2, 9, 10**6]), spoilt=st.booleans(),
)  # fmt: skip
def test_the_best_children_are_found_and_of_equal_ones_the_lower_token_is_first(
    vocabulary: int, chunk: int, seed: int, dtype: torch.dtype, levels: int, spoilt: bool
) -> None:
    chance = torch.Generator().manual_seed(seed)
    # few different scores: many are equal, signed zeros among them
    logits = ((torch.rand(4, vocabulary, generator=chance) * levels).floor() - levels // 2).to(dtype)
    logits[:, ::2] *= -1
    if spoilt:
        for bad in (torch.nan, torch.inf, -torch.inf):
            logits[torch.rand(logits.shape, generator=chance) < 0.2] = bad
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "CHUNK", chunk)
        tokens, scores = found(opened(4), logits, False)
    usable = logits.double().masked_fill(~logits.isfinite(), -torch.inf)
    wanted, order = usable.sort(descending=True, stable=True)
    for row in range(4):
        count = min(int(usable[row].isfinite().sum()), RANKS)
        assert tokens[row, :count].tolist() == order[row, :count].tolist()
        assert scores[row, :count].tolist() == wanted[row, :count].tolist()
        assert scores[row, count:].eq(-torch.inf).all()


@pytest.mark.parametrize("vocabulary", [50, 3000])
def test_noise_is_that_of_the_target_and_rows_that_are_greedy_have_none(vocabulary: int) -> None:
    logits = torch.randn(4, vocabulary, generator=torch.Generator().manual_seed(1))
    search = opened(4)
    heat = torch.tensor([0.7, 0.0, 1.3, 0.1], dtype=torch.float64)
    search.given["temperature"].copy_(heat)
    tokens, scores = found(search, logits, True)
    off = torch.zeros(4)
    params = BatchParams(heat, search.given["offset"].cpu(), off.long(), off + 1, off)
    wanted = perturb_batch(logits, params, search.given["length"].cpu() + 1, False).topk(RANKS)
    assert torch.equal(tokens, wanted.indices) and torch.allclose(scores, wanted.values.double(), rtol=2e-7, atol=0)
    assert (scores[1] - logits[1].topk(RANKS).values.double()).abs().max() == 0


@pytest.mark.parametrize("vocabulary", [50, 3000])
def test_children_are_chosen_of_what_filters_keep(vocabulary: int) -> None:
    logits = torch.randn(4, vocabulary, generator=torch.Generator().manual_seed(3))
    search = opened(4)
    reals = {"temperature": [0.7, 0.0, 1.3, 0.9], "top_p": [0.3, 0.1, 1.0, 1.0], "min_p": [0.0, 0.5, 0.2, 0.0]}
    numbers = {name: torch.tensor(values, dtype=torch.float64) for name, values in reals.items()}
    numbers |= {"top_k": torch.tensor([0, 1, 0, 3]), "offset": search.given["offset"].cpu()}
    for name, values in numbers.items():
        search.given[name].copy_(values)
    tokens, scores = found(search, logits, True, True)
    wanted = perturb_batch(logits, BatchParams(**numbers), search.given["length"].cpu() + 1, True).double().topk(RANKS)
    there = wanted.values > -torch.inf
    assert torch.equal(scores > -torch.inf, there) and torch.equal(tokens[there], wanted.indices[there])
    assert torch.allclose(scores[there], wanted.values[there], rtol=2e-7, atol=0)
    assert there.sum(1).tolist()[1::2] == [RANKS, 3], "a greedy row drops nothing, and top_k is a row's own"



"""Each kind of weight is used once before the weights are loaded; the user is told only where that takes long."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import save
from understudy import LLM, SamplingParams
from understudy.drafters.growing_tree import Candidate, GrowingTree
from understudy.drafters.pace import Calibration
from understudy.drafters.suggest import TextSuggester, match
from understudy.kernels import choosing, likeliest
from understudy.models import compile_kernels as module
from understudy.models.compile_kernels import compile_kernels
from understudy.models.stock.configuration import config_of
from understudy.models.stream.exact_linear import ExactLinear
from understudy.sampling import choose
from understudy.sequence import TokenSequence


@pytest.mark.parametrize("drafts", [True, False])
def test_one_weight_of_each_kind_is_used(drafts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "model", "llama", torch.bfloat16)
    store = LLM.prepare(tmp_path / "model", bits="mixed", codec="delta", output=tmp_path / "store")
    used: list[ExactLinear] = []
    opened = ExactLinear.__init__

    def noted(self: ExactLinear, *given: object, **options: object) -> None:
        opened(self, *given, **options)  # type: ignore[arg-type]
        used.append(self)

    monkeypatch.setattr(ExactLinear, "__init__", noted)
    compile_kernels(store, config_of(store.path), torch.bfloat16, drafts)
    kinds = {(entry.quantizer, entry.codec) for entry in store.linears.values() if entry.parts}
    assert len(kinds) > 1 and sorted((exact.entry.quantizer, exact.entry.codec) for exact in used) == sorted(kinds)


def test_sampling_compiles_nothing_any_more(tmp_path: Path) -> None:
    """What compiling leaves behind counts as what a process holds before the plan is made."""
    save(tmp_path / "model", "llama", torch.bfloat16)
    store = LLM.prepare(tmp_path / "model", codec="raw", output=tmp_path / "store")
    compile_kernels(store, config_of(store.path), torch.bfloat16, True)
    kernel: Any = likeliest._row
    before = list(kernel.signatures)
    for filters in ({}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}):
        choose(torch.randn(2, 50), SamplingParams(temperature=0.7, **filters), torch.arange(2))
    assert len(before) == 1 and list(kernel.signatures) == before


def test_a_search_compiles_nothing_any_more(tmp_path: Path) -> None:
    save(tmp_path / "model", "llama", torch.bfloat16)
    store = LLM.prepare(tmp_path / "model", codec="raw", output=tmp_path / "store")
    compile_kernels(store, config_of(store.path), torch.bfloat16, True)
    kernels: list[Any] = [choosing._chances, choosing._match]
    before = [list(kernel.signatures) for kernel in kernels]
    tree = GrowingTree(TokenSequence(0, [7, 8, 7], limit=9, prompt_length=3), 2, [7])
    assert TextSuggester().favoured(tree, Candidate(1.0, -1, 7, 0, True)) == (8, 1) and match([1, 2, 1], 2) == (1, 1)
    assert len(Calibration().chances([1.0, 0.5])) == 2
    assert [len(kept) for kept in before] == [1, 1] and [list(kernel.signatures) for kernel in kernels] == before


def test_kernels_of_recurrent_layers_are_used_where_there_are_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    for family in ("llama", "qwen3_5_text"):
        save(tmp_path / family, family, torch.bfloat16)
        store = LLM.prepare(tmp_path / family, codec="raw", output=tmp_path / f"{family}-store")
        with monkeypatch.context() as patch:
            for name in ("attend", "convolve", "recur", "fold"):
                kernel = getattr(module.Processor, name)
                patch.setattr(module.Processor, name, lambda *a, k=kernel, n=name, **b: (used.append(n), k(*a, **b))[1])
            compile_kernels(store, config_of(store.path), torch.bfloat16, True)
    assert used == ["attend", "attend", "convolve", "recur", "fold"]


def test_the_user_is_told_only_where_it_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "model", "llama", torch.bfloat16)
    store = LLM.prepare(tmp_path / "model", codec="raw", output=tmp_path / "store")
    told: list[str] = []
    given = store, config_of(store.path), torch.bfloat16, True, lambda what, *_: told.append(what)
    monkeypatch.setattr(module, "LONG", 600.0)
    compile_kernels(*given)
    assert not told
    monkeypatch.setattr(module, "LONG", 0.0)
    compile_kernels(*given)
    assert told == ["Compiling kernels for this processor, once"]

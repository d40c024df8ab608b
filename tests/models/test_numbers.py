"""Logits that are no numbers end their request with an error that says where they arose; the other requests go on."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import save
from understudy import LLM, SamplingParams
from understudy.errors import NumbersError
from understudy.models.numbers import Watch
from understudy.request import Request
from understudy.sampling import NO_TOKEN, choose

PROMPT = [17, 45, 45, 200, 3]


def change(place: Path, dtype: torch.dtype = torch.float32, **factors: float) -> None:
    """Multiply tensors of a checkpoint, named by a word in their names."""
    tensors = load_file(place / "model.safetensors")
    for name, tensor in tensors.items():
        for word, factor in factors.items():
            if word in name:
                tensor *= factor
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, place / "model.safetensors", {"format": "pt"})


@pytest.fixture
def overflowing(tmp_path: Path) -> Iterator[Path]:
    """A checkpoint whose gated block is too large for float16 and fine in float32."""
    save(tmp_path / "model", "llama")
    change(tmp_path / "model", **{"layers.1.mlp.up_proj": 1e6, "layers.1.mlp.gate_proj": 1e6})
    yield tmp_path / "model"


@pytest.mark.parametrize("method", ["none", "substitute"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_an_overflow_ends_the_request_and_is_named(method: str, temperature: float, overflowing: Path) -> None:
    params = SamplingParams(max_new_tokens=8, temperature=temperature, seed=1, top_p=0.9, ignore_eos=True)
    with LLM(overflowing, dtype="float16", method=method, memory="1GiB", context=128) as llm:
        for _ in range(2):
            with pytest.raises(NumbersError, match=r"in the product of model\.layers\.1\.mlp\..*float16.*--dtype bfloat16"):
                llm.generate(PROMPT, params)
    with LLM(overflowing, dtype="float32", method=method, memory="1GiB", context=128) as llm:
        assert len(llm.generate(PROMPT, params)[0].token_ids) == 8


class Poison:
    """A multiplication that gives what is no number for one Linear as soon as a token of a text is asked for."""

    def __init__(self, llm: LLM, index: int, value: float):
        self.real = llm.model.target.multiply
        self.index, self.value, self.row = index, value, -1

    def __call__(self, index: int, tiles: list[torch.Tensor], rows: int) -> list[torch.Tensor]:
        out = self.real(index, tiles, rows)
        if index == self.index and self.row >= 0:
            out[self.row // 32][self.row % 32] = self.value
        return out


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_the_other_requests_of_a_batch_go_on(value: float, tmp_path: Path) -> None:
    save(tmp_path / "model", "llama")
    params = SamplingParams(max_new_tokens=12, ignore_eos=True)
    other = [9, 8, 7]
    with LLM(tmp_path / "model", method="none", memory="1GiB", context=128, rows=2) as llm:
        wanted = llm.generate(other, params)[0].token_ids
        poison = Poison(llm, 10, value)
        llm.model.target.multiply = poison
        requests = [llm.request(list(prompt), params) for prompt in (PROMPT, other)]
        for request in requests:
            llm.scheduler.submit(request)
        llm.scheduler.step()
        poison.row = 0
        llm.scheduler.step()
        poison.row = -1
        assert requests[0].finished and isinstance(requests[0].error, NumbersError)
        assert not requests[1].finished
        while not requests[1].finished:
            llm.scheduler.step()
        assert requests[1].error is None and requests[1].completion().token_ids == wanted
        assert llm.generate(PROMPT, params)[0].finish_reason == "length", "the row serves again"


def test_a_batch_is_finished_before_its_error_is_raised(overflowing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LLM(overflowing, dtype="float16", method="none", memory="1GiB", context=128) as llm:
        ended: list[Any] = []
        real = llm.scheduler.complete

        def complete(requests: Iterable[Request], *more: Any) -> None:
            real((ended.append(request) or request for request in requests), *more)

        monkeypatch.setattr(llm.scheduler, "complete", complete)
        with pytest.raises(NumbersError):
            llm.generate([PROMPT, [1, 2, 3]], SamplingParams(max_new_tokens=4))
        assert [request.sequence.finish_reason for request in ended] == ["error", "error"]
        assert llm.scheduler.idle


def test_a_stream_raises_what_a_completion_does(overflowing: Path) -> None:
    with LLM(overflowing, dtype="float16", method="none", memory="1GiB", context=128) as llm, pytest.raises(NumbersError):
        list(llm.stream(PROMPT))


def test_a_norm_that_is_too_large_for_its_type_is_named(tmp_path: Path) -> None:
    save(tmp_path / "model", "llama")
    change(tmp_path / "model", **{"layers.2.input_layernorm": 1e6})
    named = pytest.raises(NumbersError, match=r"tensor model\.layers\.2\.input_layernorm\.weight.*--dtype bfloat16")
    with LLM(tmp_path / "model", dtype="float16", memory="1GiB", context=128) as llm, named:
        llm.generate(PROMPT, SamplingParams(max_new_tokens=4))


def test_a_watch_looks_at_nodes_and_not_at_padding() -> None:
    def multiply(index: int, tiles: list[torch.Tensor], rows: int) -> list[torch.Tensor]:
        return [x + (torch.inf if index == 2 else 0) for x in tiles]

    watch = Watch(multiply, ["a", "b", "c"])
    x = torch.zeros(4, 2)
    x[3] = torch.nan
    watch(0, [x], 3)
    assert watch.place is None
    watch(1, [x], 4)
    assert watch.place == "between a and b"
    watch(2, [x], 3)
    assert watch.place == "between a and b", "the first place stays"
    fresh = Watch(multiply, ["a", "b", "c"])
    fresh(2, [torch.zeros(4, 2)], 4)
    assert fresh.place == "in the product of c"


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize(
    "params", [SamplingParams(temperature=0), SamplingParams(temperature=0.7, seed=3, top_k=5, top_p=0.8, min_p=0.01)]
)
def test_no_token_is_chosen_among_what_is_no_number(value: float, params: SamplingParams) -> None:
    logits = torch.randn(3, 50)
    good = choose(logits, params, torch.arange(3))
    assert bool((good >= 0).all())
    logits[1, 33] = value
    chosen = choose(logits, params, torch.arange(3))
    assert chosen.tolist() == [int(good[0]), NO_TOKEN, int(good[2])]


def test_tokens_that_are_ruled_out_are_numbers_enough() -> None:
    logits = torch.full((1, 9), -torch.inf)
    logits[0, 4] = 1.0
    assert choose(logits, SamplingParams(temperature=0), torch.arange(1)).tolist() == [4]


def test_a_draft_of_no_numbers_still_gives_the_targets_text(tmp_path: Path) -> None:
    save(tmp_path / "model", "llama")
    params = SamplingParams(max_new_tokens=16, ignore_eos=True)
    with LLM(tmp_path / "model", method="none", memory="1GiB", context=128) as llm:
        wanted = llm.generate(PROMPT, params)[0].token_ids
    for value in (torch.nan, torch.inf):
        with LLM(tmp_path / "model", method="substitute", memory="1GiB", context=128) as llm:
            proposer = llm.engine.drafter.search.proposer  # type: ignore[attr-defined]
            draft, levels = proposer.forward, 0

            def broken(nodes: Any, draft: Any = draft, value: float = value) -> torch.Tensor:
                nonlocal levels
                levels += 1
                logits: torch.Tensor = draft(nodes).clone()
                logits[:, ::3] = value
                return logits

            proposer.forward = broken
            assert llm.generate(PROMPT, params)[0].token_ids == wanted
            assert levels > 0

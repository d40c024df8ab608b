"""Hidden states are handed to the pass under way, at the places that were asked for, as they are in the stock model.

A drafter from outside the package that asks for them is given those of its nodes, of prompts and of drafts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.tiny import save, stock
from understudy import LLM, SamplingParams
from understudy.devices import DEVICES
from understudy.drafters import DRAFTERS, Base, DrafterSpec, TargetModel, Verified
from understudy.drafters.substitute import SubstituteSpec
from understudy.errors import UsageError
from understudy.models.streamed import CurrentPass
from understudy.models.taps import BEFORE_NORM, MIDDLE, install, places_of
from understudy.sequence import TokenSequence
from understudy.tree import Nodes, TokenTree

IDS = torch.tensor([[5, 99, 5, 12, 80, 7]])


class Noting:
    """A pass that notes the hidden states it is handed."""

    def __init__(self) -> None:
        self.heard: dict[int, Tensor] = {}

    def tap(self, number: int, states: Tensor) -> None:
        assert number not in self.heard, "once a pass"
        self.heard[number] = states


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {family: stock(family) for family in ("llama", "gemma3_text", "granite")}


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "granite"])
@settings(max_examples=15, deadline=None)
@given(taps=st.lists(st.integers(-4, 3), min_size=1, max_size=5))
def test_taps_hear_what_the_stock_model_calls_its_hidden_states(models: dict[str, Any], family: str, taps: list[int]) -> None:
    model, current, noting = stock(family), CurrentPass(), Noting()
    install(model, taps, current)
    current.under_way = noting  # type: ignore[assignment]
    with torch.no_grad():
        model(IDS)
        states = models[family](IDS, output_hidden_states=True).hidden_states
    assert sorted(noting.heard) == list(range(len(taps)))
    count = len(states) - 1
    for number, place in enumerate(places_of(taps, count)):
        torch.testing.assert_close(noting.heard[number], states[place][0])


def test_of_states_side_by_side_the_first_is_heard() -> None:
    model, current, noting = stock("gemma3n_text"), CurrentPass(), Noting()
    install(model, [0, 2], current)
    current.under_way = noting  # type: ignore[assignment]
    with torch.no_grad():
        states = model(IDS, output_hidden_states=True).hidden_states
    for number, place in enumerate((0, 2)):
        assert states[place].shape[0] == 4
        torch.testing.assert_close(noting.heard[number], states[place][0, 0])


def test_of_states_that_are_mixed_in_each_layer_only_the_last_one_is_heard() -> None:
    model, current, noting = stock("deepseek_v4"), CurrentPass(), Noting()
    for tap in (1, -2, BEFORE_NORM):
        with pytest.raises(UsageError, match="hand on 3 states side by side that are mixed anew each time: only -1"):
            install(model, [tap], current)
    install(model, [-1], current)
    current.under_way = noting  # type: ignore[assignment]
    with torch.no_grad():
        last = model.model(IDS).last_hidden_state[0]
    torch.testing.assert_close(noting.heard[0], last)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "granite", "qwen3_5_text", "cohere", "opt"])
def test_what_lies_before_the_norm_is_what_the_norm_is_given(family: str) -> None:
    """transformers keeps it in no list: its `hidden_states` end with the output of the norm."""
    model, current, noting = stock(family), CurrentPass(), Noting()
    install(model, [BEFORE_NORM, -1, -2], current)
    current.under_way = noting  # type: ignore[assignment]
    base = getattr(model, model.base_model_prefix)
    with torch.no_grad():
        states = model(IDS, output_hidden_states=True).hidden_states
        norm = base.decoder.final_layer_norm if family == "opt" else base.norm
        torch.testing.assert_close(norm(noting.heard[0]), states[-1][0])
    torch.testing.assert_close(noting.heard[1], states[-1][0])
    torch.testing.assert_close(noting.heard[2], states[-2][0])
    assert not torch.allclose(noting.heard[0], noting.heard[1]) and not torch.allclose(noting.heard[0], noting.heard[2])


def test_a_pass_that_takes_no_hidden_states_and_no_pass_at_all_are_left_alone(models: dict[str, Any]) -> None:
    model, current = stock("llama"), CurrentPass()
    install(model, [0, 1, -1], current)
    for under_way in (None, object()):
        current.under_way = under_way  # type: ignore[assignment]
        with torch.no_grad():
            assert torch.equal(model(IDS).logits, models["llama"](IDS).logits)


def test_without_taps_nothing_is_hooked() -> None:
    model = stock("llama")
    install(model, [], CurrentPass())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@given(st.integers(1, 90), st.data())
def test_places_are_counted_from_both_ends(blocks: int, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, blocks))
    assert places_of([MIDDLE], blocks) == [blocks // 2]
    assert places_of([place, place - blocks - 1, BEFORE_NORM], blocks) == [place, place, BEFORE_NORM]
    beyond = data.draw(st.sampled_from([blocks + 1, -blocks - 2]))
    with pytest.raises(UsageError):
        places_of([beyond], blocks)


PROMPT = [5, 99, 5, 12, 80, 5, 99, 5] * 12


class Listening(Base):
    """Drafts from a text that it was told, with a wrong branch beside it, and notes the hidden states of accepted nodes."""

    def __init__(self, foretold: dict[int, list[int]]):
        self.foretold = foretold
        self.heard: dict[int, list[Tensor]] = {}
        self.chunks = self.accepted = 0

    def draft(self, sequences: Sequence[TokenSequence]) -> list[TokenTree]:
        return [self._tree(sequence) for sequence in sequences]

    def _tree(self, sequence: TokenSequence) -> TokenTree:
        at = len(sequence.tokens)
        right = self.foretold.get(sequence.row, [])[at : at + min(3, sequence.remaining - 1)]
        tokens, parents = [sequence.tokens[-1]], [-1]
        for depth, token in enumerate(right):  # each with a wrong sibling before it
            parent = 2 * depth
            tokens += [(token + 1) % 256, token]
            parents += [parent, parent]
        return TokenTree.of(tokens, parents)

    def observe(self, verified: Verified) -> None:
        assert verified.hidden is not None and len(verified.hidden) == len(verified.tree)
        self.chunks += not verified.drafted
        self.accepted += verified.drafted and len(verified.path) - 1
        self.heard.setdefault(verified.sequence.row, []).append(verified.hidden[verified.path].clone())


TEXTS: dict[int, list[int]] = {}


@dataclass(frozen=True, kw_only=True)
class ListeningSpec(DrafterSpec):
    """The options of this drafter: where it listens."""

    first: int = 0
    last: int = -1

    @property
    def taps(self) -> tuple[int, ...]:
        return (self.first, 2, self.last)

    def open(self, target: TargetModel) -> Listening:
        return Listening(TEXTS)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DRAFTERS, "listening", f"{__name__}:ListeningSpec")
    TEXTS.clear()


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "granite"])
def test_hidden_states_are_those_of_the_stock_model(family: str, tmp_path: Path) -> None:
    stock = save(tmp_path / "model", family, torch.float32)
    params = SamplingParams(max_new_tokens=20, ignore_eos=True)
    prompts = [PROMPT, PROMPT[:3]]
    with LLM(tmp_path / "model", method="none", memory="1GiB", context=256, rows=2) as llm:
        plain = [done.token_ids for done in llm.generate(prompts, params)]
    TEXTS.update({row: prompt + ids for row, (prompt, ids) in enumerate(zip(prompts, plain, strict=True))})
    with LLM(tmp_path / "model", method="listening", memory="1GiB", context=256, rows=2, resident="none") as llm:
        llm.engine.max_nodes = 64  # so that the longer prompt is read in chunks
        done = llm.generate(prompts, params)
        drafter = llm.engine.drafter
    assert isinstance(drafter, Listening) and drafter.chunks > 2 and drafter.accepted > 20
    assert [c.token_ids for c in done] == plain
    for row, text in TEXTS.items():
        heard = torch.cat(drafter.heard[row])
        with torch.no_grad():
            states = stock(torch.tensor([text[: len(heard)]]), output_hidden_states=True).hidden_states
        wanted = torch.stack([states[0][0], states[2][0], states[-1][0]], 1)
        assert heard.shape == wanted.shape and len(heard) >= len(text) - 1
        torch.testing.assert_close(heard, wanted, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_level_of_a_draft_gives_the_hidden_states_of_its_nodes(tmp_path: Path) -> None:
    stock = save(tmp_path / "model", "llama", torch.float32)
    options = {"method": "substitute", "quantizer": "exact", "memory": "1GiB", "context": 256}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SubstituteSpec, "taps", (0, 2, -1))
        with LLM(tmp_path / "model", **options) as llm:
            branching = TokenTree.of([5, 99, 12, 80, 7], [-1, 0, 0, 2, 1])
            logits, hidden = llm.model.draft_tapped(Nodes.of(branching, 0, 0))
            assert torch.equal(logits, llm.model.draft(Nodes.of(branching, 0, 0)))
    for text, nodes in (([5, 99, 7], [0, 1, 4]), ([5, 12, 80], [0, 2, 3])):
        states = stock(torch.tensor([text]), output_hidden_states=True).hidden_states
        wanted = torch.stack([states[0][0], states[2][0], states[-1][0]], 1)
        torch.testing.assert_close(hidden[nodes], wanted, rtol=1e-3, atol=1e-3)


@dataclass(frozen=True, kw_only=True)
class ListeningBeforeSpec(ListeningSpec):
    """Listens at what lies before the norm and after it."""

    @property
    def taps(self) -> tuple[int, ...]:
        return (BEFORE_NORM, -1)


@pytest.mark.parametrize("options", [{"dtype": "float32"}, {"dtype": "bfloat16"}, {"device": "fake", "codec": "raw"}])
def test_states_before_the_norm_become_those_after_it(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks and accepted nodes, also where rows alone are multiplied, and on a device; no bit of a text depends on it."""
    monkeypatch.setitem(DRAFTERS, "before", f"{__name__}:ListeningBeforeSpec")
    monkeypatch.setitem(DEVICES, "fake", "tests.fake_device:without_triton")
    save(tmp_path / "model", "llama", torch.float32 if options.get("dtype") == "float32" else torch.bfloat16)
    common: dict[str, Any] = {"memory": "1GiB", "context": 128, "rows": 1, "resident": "none", **options}
    params = SamplingParams(max_new_tokens=10, ignore_eos=True)
    with LLM(tmp_path / "model", method="none", **common) as llm:
        plain = llm.generate([PROMPT[:40]], params)[0]
    TEXTS[0] = PROMPT[:40] + plain.token_ids
    with LLM(tmp_path / "model", method="before", **common) as llm:
        done = llm.generate([PROMPT[:40]], params)[0]
        drafter, model = llm.engine.drafter, llm.model
        before, after = torch.cat(drafter.heard[0]).unbind(1)
        with torch.inference_mode():
            assert torch.equal(model.module.model.norm(before), after)
    assert done.token_ids == plain.token_ids and drafter.accepted > 5 and len(before) >= 49
    assert 0 < done.stats.bytes_streamed < plain.stats.bytes_streamed


def test_the_plan_counts_what_taps_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "model", "llama", torch.float32)
    options = {"memory": "1GiB", "context": 256, "rows": 1, "method": "listening"}
    plans = [LLM.plan_only(tmp_path / "model", **options)]
    monkeypatch.setattr(ListeningSpec, "taps", ())
    plans.insert(0, LLM.plan_only(tmp_path / "model", **options))
    plain, tapped = (plan.items["activations"] for plan in plans)
    assert plans[0].passes == plans[1].passes
    assert tapped - plain == plans[0].passes.tiles * 32 * 3 * 64 * 4, "three states of 64 float32 for each node of a pass"


def test_a_hidden_state_that_the_model_has_not_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "model", "llama", torch.float32)
    with pytest.raises(UsageError, match="reads hidden state 9, but this model of 3 layers has 0 to 3"):
        LLM(tmp_path / "model", method="listening:first=9", memory="1GiB", context=64)

"""Contracts over the tables: an extension is tested by being registered. Lossless under adversarial tiers; route-free drafters."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import tiny, trained
from tests.adversaries import ADVERSARIES, Failing, Short
from tests.mtp import fit_mtp, publish_mtp
from understudy import LLM, SamplingParams, blueprint
from understudy.codecs import CODECS, OTHERWISE
from understudy.codecs import codec as codec_named
from understudy.drafters import DRAFTERS
from understudy.drafters.pace import Pace
from understudy.drafters.policy import calibrations
from understudy.errors import StoreError, TransferError
from understudy.plan.demand import Footprint, PlanRequest
from understudy.plan.memory import make_plan
from understudy.plan.placement import Plan
from understudy.quantizers import QUANTIZERS
from understudy.sequence import TokenSequence
from understudy.tiers import disk
from understudy.tree import TokenTree

PROMPT = [5, 99, 5, 12, 80, 5, 99, 5]
GREEDY = SamplingParams(max_new_tokens=24, ignore_eos=True)
SAMPLED = SamplingParams(max_new_tokens=24, ignore_eos=True, temperature=0.9, seed=3)
# Methods that draft with a trained head.
HEADS = (*trained.SHAPES, "mtp")
# Before the kind of a head that speaks in front of the 4-bit copy.
SUGGESTED = "substitute:suggest="


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It brings a layer for multi-token prediction that knows what it says after PROMPT."""
    path = tmp_path_factory.mktemp("contracts") / "model"
    stock = publish_mtp(path, "qwen2", torch.bfloat16)
    with opened(path, method="none") as llm:
        fit_mtp(path, stock, [PROMPT + llm.generate([PROMPT], params)[0].token_ids for params in (GREEDY, SAMPLED)])
    return path


opened = partial(tiny.opened, rows=2)


@pytest.fixture(scope="module")
def plain(model: Path) -> list[list[int]]:
    with opened(model, method="none") as llm:
        return [llm.generate([PROMPT], params)[0].token_ids for params in (GREEDY, SAMPLED)]


@pytest.fixture(scope="module")
def heads(model: Path, plain: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a head of a kind that agrees with the model, made when it is first asked for."""
    folder, made = tmp_path_factory.mktemp("heads"), set()

    def head(kind: str) -> Path:
        if kind not in made:
            trained.agreeing(folder / kind, model, kind, [PROMPT + text for text in plain])
            made.add(kind)
        return folder / kind

    return head


def method(name: str, model: Path, heads: Callable[[str], Path]) -> str:
    if name in trained.SHAPES:
        return f"{name}:{heads(name)}"
    if name.startswith(SUGGESTED):
        return SUGGESTED + method(name.removeprefix(SUGGESTED), model, heads)
    return f"classic:{model}" if name == "classic" else name


def with_tier(monkeypatch: pytest.MonkeyPatch, adversary: Any) -> None:
    """Stream through `adversary(extents)` in place of the disk."""

    monkeypatch.setattr(disk, "open_disk", lambda streaming, streams: adversary(streaming.extents))


@pytest.mark.parametrize("tier", ADVERSARIES)
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_lossless(
    drafter: str, tier: Any, model: Path, plain: list[list[int]], heads: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_tier(monkeypatch, ADVERSARIES[tier] if isinstance(ADVERSARIES, dict) else tier)
    with opened(model, method=method(drafter, model, heads)) as llm:
        done = [llm.generate([PROMPT], params)[0] for params in (GREEDY, SAMPLED)]
    assert [c.token_ids for c in done] == plain
    assert all(c.stats.bytes_streamed > 0 for c in done)
    if drafter in HEADS:
        # A head that is given a hidden state too early or too late agrees with nothing.
        assert all(c.stats.accepted >= 12 for c in done), [c.stats.accepted for c in done]


OTHERS = [[5, 99, 5, 12, 80, 7], [200, 3], PROMPT]
PENALISED = replace(SAMPLED, repetition_penalty=1.3, presence_penalty=0.4, top_p=0.95, top_k=100, logit_bias={7: 2.0})


@pytest.fixture(scope="module")
def plainly(model: Path) -> list[list[list[int]]]:
    """The texts of OTHERS, one by one, for each way of choosing tokens."""
    with opened(model, method="none") as llm:
        return [[llm.generate([prompt], params)[0].token_ids for prompt in OTHERS] for params in (GREEDY, SAMPLED, PENALISED)]


@pytest.mark.parametrize(
    ("kind", "policy", "resident"),
    [*((kind, "ragged", "none") for kind in HEADS), ("eagle3", "eqspec", "auto"), ("clover", "exspec", "residual")],
)
def test_heads_are_lossless_in_any_batch_and_plan(
    kind: str, policy: str, resident: str, model: Path, plainly: list[list[list[int]]], heads: Callable[[str], Path]
) -> None:
    with opened(model, method=method(kind, model, heads), policy=policy, resident=resident, rows=3) as llm:
        for params, wanted in zip((GREEDY, SAMPLED, PENALISED), plainly, strict=True):
            done = llm.generate(OTHERS, params)
            assert [c.token_ids for c in done] == wanted
            assert done[-1].stats.accepted > 0


@pytest.mark.parametrize(
    ("kind", "policy", "resident"), [("eagle", "ragged", "none"), ("medusa", "eqspec", "none"), ("mtp", "exspec", "auto")]
)
def test_heads_in_front_of_the_copy_are_lossless_in_any_batch_and_plan(
    kind: str, policy: str, resident: str, model: Path, plainly: list[list[list[int]]], heads: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # Whether it pays is a question of seconds, and so of what else the machine does.
    monkeypatch.setattr(Pace, "pays_to_ask", lambda *_: True)
    with opened(model, method=method(SUGGESTED + kind, model, heads), policy=policy, resident=resident, rows=3) as llm:
        for params, wanted in zip((GREEDY, SAMPLED, PENALISED), plainly, strict=True):
            done = llm.generate(OTHERS, params)
            assert [c.token_ids for c in done] == wanted
            assert sum(c.stats.accepted for c in done) > 0
            assert sum(sum(c.stats.suggested.values()) for c in done) > 0


@pytest.mark.parametrize("kind", ["medusa", "eagle3", "mtp"])
def test_choices_of_one_prompt_are_those_of_texts_of_their_own(kind: str, model: Path, heads: Callable[[str], Path]) -> None:
    """The prompt is read once, and what the head knows of it goes to the other rows."""
    prompt = PROMPT * 20
    params = [replace(SAMPLED, seed=seed) for seed in (3, 4, 5)]
    with opened(model, method="none") as llm:
        wanted = [llm.generate([prompt], each)[0].token_ids for each in params]
    with opened(model, method=method(kind, model, heads), rows=3) as llm:
        done = llm.generate([prompt] * 3, params)
        state = llm.engine.drafter.proposer.state
        assert all(state.cache.lengths[row] >= len(prompt) for row in range(3))
    assert [c.token_ids for c in done] == wanted
    assert sorted(c.stats.cached_tokens for c in done) == [0, len(prompt) - 1, len(prompt) - 1]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_lossless_with_every_quantizer(quantizer: str, codec: str, model: Path, plain: list[list[int]]) -> None:
    with opened(model, quantizer=quantizer, codec=codec) as llm:
        done = [llm.generate([PROMPT], params)[0] for params in (GREEDY, SAMPLED)]
        assert {entry.quantizer for entry in llm.store.linears.values()} == {quantizer}
    assert [c.token_ids for c in done] == plain
    assert done[0].stats.accepted > 0


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("calibrated", [False, True])
def test_lossless_with_mixed_bits(
    calibrated: bool, codec: str, model: Path, plain: list[list[int]], tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("what the model is to read")
    text = {"calibrate": tmp_path / "text"} if calibrated else {}
    with opened(model, bits="mixed", codec=codec, **text) as llm:
        done = [llm.generate([PROMPT], params)[0] for params in (GREEDY, SAMPLED)]
        assert len({entry.quantizer for entry in llm.store.linears.values()}) > 1
        assert ("calibrated" in llm.store.recipe.quantizer) == calibrated
    assert [c.token_ids for c in done] == plain
    assert done[0].stats.accepted > 0


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("method", ["none", "substitute"])
@pytest.mark.parametrize("resident", ["none", "auto"])
def test_lossless_with_every_codec(codec: str, method: str, resident: str, model: Path, plain: list[list[int]]) -> None:
    with opened(model, codec=codec, method=method, resident=resident) as llm:
        done = [llm.generate([PROMPT], params)[0] for params in (GREEDY, SAMPLED)]
        assert {entry.codec for entry in llm.store.linears.values()} == {OTHERWISE if codec_named(codec).form else codec}
    assert [c.token_ids for c in done] == plain
    assert (done[0].stats.bytes_streamed > 0) == (resident == "none")


@pytest.mark.parametrize("method", ["none", "substitute"])
@pytest.mark.parametrize("codec", CODECS)
def test_lossless_whatever_is_kept_whole(codec: str, method: str, model: Path, plain: list[list[int]]) -> None:
    with opened(model, codec=codec, method=method, resident="whole") as llm:
        done = [llm.generate([PROMPT], params)[0] for params in (GREEDY, SAMPLED)]
        assert len(llm.plan.whole) == len(llm.store.linears) and not llm.plan.residents
        assert llm.plan.items["substitute"] == 0 and done[0].stats.bytes_streamed == 0
    assert [c.token_ids for c in done] == plain
    assert done[0].stats.accepted > 0 or method == "none"


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("codec", CODECS)
def test_lossless_whatever_is_resident(
    codec: str, model: Path, plain: list[list[int]], monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    """Any set of residual parts and of whole Linears: each bit of the target is the same, whatever drafts beside it."""

    def drawn(footprint: Footprint, request: PlanRequest) -> Plan:
        plan = make_plan(footprint, replace(request, resident="none"))
        whole = data.draw(st.sets(st.integers(0, len(footprint.linears) - 1)), "whole")
        parts = data.draw(st.sets(st.integers(0, len(footprint.part_bytes) - 1)), "residents")
        owners = [i for i, linear in enumerate(footprint.linears) for _ in range(linear.parts)]
        return replace(plan, whole=frozenset(whole), residents=frozenset(p for p in parts if owners[p] not in whole))

    monkeypatch.setattr(blueprint, "make_plan", drawn)
    with opened(model, codec=codec) as llm:
        done = [llm.generate([PROMPT], params)[0] for params in (GREEDY, SAMPLED)]
        streams = len(llm.plan.residents) + len(llm.plan.whole) < len(llm.store.linears)
    assert [c.token_ids for c in done] == plain
    assert (done[0].stats.bytes_streamed > 0) == streams and done[0].stats.accepted > 0


# The tenth fetch belongs to the second pass: however many tokens a round accepts, it is asked for.
@pytest.mark.parametrize("tier", [partial(Failing, nth=10), Short])
def test_what_does_not_arrive_never_becomes_text(tier: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_tier(monkeypatch, tier)
    with opened(model) as llm, pytest.raises(TransferError):
        for step in llm.stream(PROMPT, GREEDY):
            assert step.token_ids


def test_a_flipped_bit_in_the_stream_is_found_before_any_text(model: Path) -> None:
    with opened(model) as llm:
        file = llm.store.file("residual.bin")
    whole = file.read_bytes()
    try:
        damaged = bytearray(whole)
        damaged[len(damaged) // 2] ^= 4
        file.write_bytes(damaged)
        with opened(model) as llm, pytest.raises(StoreError, match=r"residual\.bin is damaged"):
            next(iter(llm.stream(PROMPT, GREEDY)))
    finally:
        file.write_bytes(whole)


@pytest.fixture(scope="module", params=[name for name in DRAFTERS if name != "none"])
def drafting(
    request: pytest.FixtureRequest, heads: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LLM]:
    model = tmp_path_factory.mktemp("route") / "model"  # float32: a draft's own rounding depends on its shapes
    publish_mtp(model, "qwen2", torch.float32)
    named = method(request.param, model, heads)
    depth = trained.SHAPES.get(request.param, {}).get("heads", 5)
    shape = "" if request.param == "ngram" else ("," if ":" in named else ":") + f"width=3,depth={depth}"
    with opened(model, method=named + shape) as llm:
        yield llm


def drafted(llm: LLM, row: TokenSequence) -> TokenTree:
    """The tree for `row`; what was learned of chances on the way is no part of the route."""
    if hasattr(llm.engine.drafter, "policy"):
        llm.engine.drafter.policy.calibrations = calibrations()
    return llm.engine.drafter.draft([row])[0]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@torch.inference_mode()
def test_a_drafter_drafts_as_one_that_read_the_text_in_one_go(drafting: LLM, data: st.DataObject) -> None:
    """After any route of passes and rewinds. Losslessness alone cannot see a drafter going stupid."""
    params = SamplingParams(max_new_tokens=200, ignore_eos=True)
    engine = drafting.engine
    row = engine.admit(TokenSequence(0, list(PROMPT), params))
    for _ in range(data.draw(st.integers(1, 5))):
        engine.step()
        if data.draw(st.booleans()):
            engine.release(row)
            keep = data.draw(st.integers(1, len(row.tokens)))
            fresh = data.draw(st.lists(st.integers(0, 255), min_size=1, max_size=4))
            row = engine.admit(TokenSequence(0, row.tokens[:keep] + fresh, params))
            engine.step()
    travelled = drafted(drafting, row)
    text = list(row.tokens)
    engine.release(row)
    engine.kept.clear()
    straight = engine.admit(TokenSequence(1, text[:-1], params))
    straight.stops = lambda token: False
    engine.step()
    straight.tokens[-1] = text[-1]
    read = drafted(drafting, straight)
    engine.release(straight)
    engine.kept.clear()
    assert travelled.tokens.tolist() == read.tokens.tolist()
    assert travelled.parents.tolist() == read.parents.tolist()
    assert len(travelled) > 1 or drafting.options.method.startswith("ngram")

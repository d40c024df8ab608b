"""What a conversation takes: every byte has a name, each step needs less memory, and what is named does work."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.plan.test_rounds import PLAN
from tests.tiny import save
from understudy import LLM
from understudy.chat_plan import chat_for
from understudy.chat_table import KEPT, Chat
from understudy.concessions import HEAD_TOKENS, drafting_of
from understudy.demo import head_path
from understudy.drafters.start import FILE, Start
from understudy.errors import UsageError
from understudy.frontends import main
from understudy.options import Options
from understudy.plan.conversation import Conversation
from understudy.plan.other_machine import OtherMachine
from understudy.plan.rounds import Arithmetic
from understudy.plan.sizes import parse_size

TALK = Conversation(turns=4, prompt=24, reply=60)
MACHINE = "cpu:memory=4GB,disk=0.5GB/s,bandwidth=20GB/s"
OTHER = OtherMachine.parse(MACHINE)
SLOW = Arithmetic(10**9, 10**-10, 10**9, 2 * 10**9, 10**-12, 10**-4, 10**-5, 0.0, 10**-3, 10**-5, 0.0, 10**-4, 10**-3, 10**-3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shaped as Llama, with layers enough that weights are most of it."""
    place = tmp_path_factory.mktemp("chat") / "model"
    save(place, "llama", torch.bfloat16, hidden_size=512, intermediate_size=1408, num_hidden_layers=6)
    return place


@pytest.fixture
def planned(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path))

    def plan(fit: str = "context", talk: Conversation = TALK, **options: Any) -> Chat:
        return chat_for(model, (talk, fit, ""), Options.of(options, os.environ), SLOW, OTHER)

    return plan


def test_steps_come_in_order_and_all_bytes_have_names(planned: Any) -> None:
    chat = planned()
    budgets = [step.budget_bytes for step in chat.steps]
    assert budgets == sorted(budgets, reverse=True) and len(set(budgets)) > 5
    for step in chat.steps:
        assert sum(step.terms.values()) == step.plan.used <= step.budget_bytes
    assert chat.steps[0].plan.streamed_bytes == 0 and chat.lower_bound is chat.steps[-1]
    bound = chat.lower_bound.plan
    assert not bound.residents and bound.streamed_bytes == bound.residual_bytes and chat.lower_bound.expected.shape.levels == 0
    assert chat.steps[0].expected.tokens_per_second > chat.lower_bound.expected.tokens_per_second
    terms = chat.chosen.terms
    layer_bytes = 2 * 2 * 128 * 2
    assert terms["keys and values (layers that see all)"] == 6 * layer_bytes * TALK.tokens
    assert terms["scratch of trees"] > 0 and terms["noise and choosing of tokens"] > 0


def test_of_6_bits_that_were_chosen_some_go_first(planned: Any) -> None:
    """What is said holds in less memory too, where others would be chosen."""
    chat = planned(resident="none")
    budgets = [step.budget_bytes for step in chat.steps]
    assert budgets == sorted(budgets, reverse=True) and chat.steps[0].plan.copy == "int6, head int8"
    said = [step.options for step in chat.steps if "bits" in step.options]
    assert said == ["--head-bits 6 --bits 6", "--bits 4", "--bits mixed:bits=3.5", "--bits 3", "--bits 2"]
    assert [step.options for step in planned().steps if "bits" in step.options] == ["--head-bits 4", *said[2:]]
    given = [step.options for step in planned(resident="none", bits=6).steps if "bits" in step.options]
    assert given == ["--head-bits 6", *said[1:]]


# A small model's config, of 126 million streamed weights.
SIZES: dict[str, Any] = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "num_attention_heads": 16, "num_key_value_heads": 4,
    "vocab_size": 4096, "max_position_embeddings": 8192,
}  # fmt: skip


@pytest.mark.parametrize("asked", [{}, {"resident": "none"}, {"resident": "none", "memory": "600MB"}, {"head_bits": 8}])
def test_a_step_without_options_is_what_a_run_in_its_budget_does(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It chooses bits of the copy and of the head by that budget, not by the one that the table is asked for."""
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": "bfloat16", **SIZES}))
    # The first budgets are more than that machine has: then as if it had so much.
    machine = "cpu:memory=700MB,disk=0.1GB/s,bandwidth=60GB/s"
    other = OtherMachine.parse(machine)
    chat = chat_for(tmp_path, (TALK, "context", ""), Options.of(asked, os.environ), SLOW, other, config_alone=True)
    assert chat.keeping is not None
    roomy = machine.replace("700MB", "4GB")
    own = [*chat.exact_steps, chat.keeping, *([chat.chosen] if not chat.chosen.options else [])]
    for step in own:
        given = {**asked, "memory": step.budget_bytes, "context": TALK.tokens, "rows": 1}
        assert step.plan.copy == LLM.plan_only(config=tmp_path, machine=roomy, **given).copy, step.gives_up
    copies = [step.plan.copy for step in own]
    assert len(set(copies)) > 1 or asked == {"head_bits": 8}
    if "resident" in asked:
        assert copies[0] == "int6, head int8" and chat.keeping.plan.copy.startswith("int6") and "int4" in copies[1]
    lines = "\n".join(chat.lines())
    assert ("exact weights that stay (copy of the weights: int4" in lines) == (len(set(copies)) > 1)
    assert [step["copy"] for step in chat.to_dict()["concessions"]] == [step.plan.copy for step in chat.steps]


def test_a_step_takes_the_store_that_a_run_would(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path))
    LLM.prepare(model, bits=6, codec="delta")
    asked: dict[str, Any] = {"codec": "delta", "throttle": 2e7}
    large, small = (
        chat_for(model, (TALK, "context", ""), Options.of({**asked, "memory": memory}, os.environ), SLOW)
        for memory in ("1GiB", "519MiB")
    )
    assert {step.plan.copy for step in large.exact_steps} == {"int6, head int8"}
    assert small.chosen.plan.copy.startswith("int4")
    for step in (*large.exact_steps, *small.exact_steps):
        plan = LLM.plan_only(model, **asked, memory=step.budget_bytes, context=TALK.tokens, rows=1)
        assert step.plan.copy == plan.copy, (step.gives_up, step.budget_bytes)


@pytest.mark.parametrize("clients", [3, 200, 1000])
def test_each_step_needs_less_for_any_number_of_clients(planned: Any, clients: int) -> None:
    """Also where more of them read at once than a step leaves pieces of prompts for."""
    chat = planned(talk=Conversation(turns=2, prompt=8, reply=8, clients=clients))
    budgets = [step.budget_bytes for step in chat.steps]
    assert budgets == sorted(budgets, reverse=True) and all(step.plan.rows == clients for step in chat.steps)
    assert all(step.plan.used <= step.budget_bytes for step in chat.steps)


def test_without_a_copy_keys_and_values_stay_where_they_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They go to disk for a copy; where there is none any more, that is given back before drafting ends in the least memory."""
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": "bfloat16", **SIZES}))
    talk = Conversation(turns=20, prompt=90, reply=90)

    def planned(memory: str | int) -> Chat:
        options = Options.of({"memory": memory}, os.environ)
        return chat_for(tmp_path, (talk, "context", ""), options, SLOW, OTHER, config_alone=True)

    chat = planned("3GB")
    names = [step.gives_up for step in chat.steps]
    assert "keys and values of old tokens in fast memory: they go to disk" in names
    roomy, least = chat.steps[-2:]
    assert roomy.gives_up == "drafting, while all keys and values stay in fast memory"
    assert roomy.plan.spill_latest == 0 < least.plan.spill_latest and "--spill" not in roomy.options and "--spill" in least.options
    assert roomy.expected.tokens_per_second > least.expected.tokens_per_second and roomy.expected.shape.levels == 0
    budgets = [step.budget_bytes for step in chat.steps]
    assert budgets == sorted(budgets, reverse=True)
    held = planned(roomy.budget_bytes)
    assert held.chosen.options == roomy.options


def test_the_turns_that_fit_are_told(planned: Any) -> None:
    least = planned().lower_bound.budget_bytes
    with pytest.raises(UsageError, match=r"^4 turns need .*: (1 turn fits|[23] turns fit)\.$"):
        planned(memory=least - 1)
    one = planned(talk=Conversation(turns=1, prompt=24, reply=60)).lower_bound.budget_bytes
    with pytest.raises(UsageError, match=r"^4 turns need .*: 1 turn fits\.$"):
        planned(memory=one)
    with pytest.raises(UsageError, match=r"no turn fits; use more memory or a smaller model\.$"):
        planned(memory="1MiB")


def test_drafting_keeps_its_speed_from_the_named_budget_on(planned: Any) -> None:
    chat = planned("speed")
    assert chat.keeping is not None and chat.chosen is chat.keeping
    wanted = KEPT * chat.steps[0].expected.tokens_per_second
    assert chat.keeping.expected.tokens_per_second >= wanted
    below = next(step for step in chat.steps if step.budget_bytes < chat.keeping.budget_bytes)
    assert below.expected.tokens_per_second < wanted or below.budget_bytes > chat.keeping.budget_bytes - (2 << 20)


def test_what_is_held_decides_what_is_run(planned: Any) -> None:
    chat = planned("memory")
    assert chat.chosen is chat.lower_bound
    short = chat.steps[-2].budget_bytes
    held = planned("context", memory=short)
    assert held.chosen.budget_bytes <= short and held.chosen is not held.lower_bound
    with pytest.raises(UsageError, match=r"keeps 96% of its speed from \d+ MiB on"):
        planned("speed", memory=short)


def test_what_is_named_does_work(planned: Any, model: Path) -> None:
    chat = planned()
    step = chat.steps[5]
    assert not step.options or step.options.startswith("--head-bits")
    words: dict[str, Any] = {"head_bits": 4} if step.options else {}
    options = {"context": TALK.tokens, "rows": 1, "memory": step.budget_bytes, **words}
    found = LLM.plan_only(model, machine=MACHINE, **options)
    assert found.used <= step.budget_bytes
    with pytest.raises(UsageError, match="too small"):
        LLM.plan_only(model, machine=MACHINE, **{**options, "memory": step.plan.least_bytes - (1 << 20)})


def test_a_long_conversation_gives_up_old_keys_and_values(tmp_path: Path) -> None:
    save(tmp_path, "llama", torch.bfloat16, max_position_embeddings=65536)
    talk = Conversation(turns=100, prompt=64, reply=256)

    def planned(**options: Any) -> Chat:
        return chat_for(tmp_path, (talk, "context", ""), Options.of(options, os.environ), SLOW, OTHER)

    chat = planned()
    place = next(place for place, step in enumerate(chat.steps) if step.options.startswith("--spill 1024"))
    before, spills = chat.steps[place - 1 : place + 1]
    assert not before.options and spills.budget_bytes < before.budget_bytes
    assert spills.expected.tokens_per_second < before.expected.tokens_per_second, "reading them costs nothing"
    assert all(step.options.startswith("--spill 1024") for step in chat.steps[place:])
    for step in chat.steps:
        assert sum(step.terms.values()) == step.plan.used <= step.budget_bytes
    held = planned(memory=spills.budget_bytes)
    assert held.chosen.plan.spill_latest == 1024 and "go to disk" in "\n".join(held.lines())
    assert not any(step.options.startswith("--spill") for step in planned(spill="none").steps)


def test_what_is_not_exact_is_shown_and_never_chosen(planned: Any) -> None:
    """It has a budget and a speed as all steps have, and works in that budget."""
    chat = planned("memory")
    small, own = chat.inexact, chat.exact_steps[-1]
    assert small is not None and small.options == "--kv-bits 8" and small.plan.kv_bits == 8
    held = "keys and values (layers that see all)"
    assert small.budget_bytes < own.budget_bytes and small.terms[held] < 0.6 * own.terms[held]
    assert small.expected.tokens_per_second > 0 and sum(small.terms.values()) == small.plan.used <= small.budget_bytes
    lines = chat.lines()
    row = lines[lines.index("only where you ask for it:") + 1]
    assert f"{small.expected.tokens_per_second:.2f} tok/s" in row and "8 bits, which is not exact" in row
    assert any("--kv-bits 8 needs" in line and "is not exact" in line for line in lines)
    assert small not in chat.steps and chat.chosen.plan.kv_bits == 0
    assert chat.to_dict()["only_if_asked"]["options"] == "--kv-bits 8"
    asked = planned("memory", kv_bits=8)
    assert asked.inexact is None and asked.chosen.plan.kv_bits == 8 and "not always the same" in "\n".join(asked.lines())


def test_clients_multiply_keys_and_values(planned: Any) -> None:
    one, four = planned(), planned(talk=Conversation(4, 24, 60, clients=4))
    for name in ("keys and values (layers that see all)", "scratch of trees"):
        assert four.chosen.terms[name] == 4 * one.chosen.terms[name]


def test_bad_input_is_one_line(planned: Any) -> None:
    cases: list[tuple[str, Conversation, dict[str, Any]]] = [
        (r"\d+ turns need \d+ MiB at least .*no turn fits", TALK, {"memory": "100MiB"}),
        ("--context 4 contradicts", TALK, {"context": 4}),
        ("--rows 1 contradicts --chat, which needs 2", Conversation(4, 24, 60, clients=2), {"rows": 1}),
        ("loads two", TALK, {"method": "classic:x"}),
        ("this model has 512 positions: they hold 5 such turns", Conversation(40, 24, 60), {}),
    ]
    for said, talk, options in cases:
        with pytest.raises(UsageError, match=said) as error:
            planned(talk=talk, **options)
        assert "\n" not in str(error.value)


def test_a_budget_that_holds_fewer_turns_says_how_many(planned: Any) -> None:
    least = planned("memory").lower_bound.budget_bytes
    turn_bytes = 6 * 2 * 2 * 128 * 2 * TALK.turn
    with pytest.raises(UsageError, match=r"4 turns need .*: [123] turns fit"):
        planned(memory=least - int(1.5 * turn_bytes))


def test_the_command_prints_lines_or_json(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path))
    words = ["plan", str(model), "--for", MACHINE, "--chat", "turns=4,prompt=24,reply=60"]
    assert main([*words, "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "lower bound" in said and "keeps 96%" in said and "is not exact" in said
    assert main([*words, "--json", "--fit", "memory"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["chosen"] == {**found["lower_bound"], "terms": found["chosen"]["terms"]}
    assert sum(found["chosen"]["terms"].values()) == found["plan"]["used"] <= found["budget"] == parse_size("4GB") * 9 // 10
    assert main(["plan", str(model), "--fit", "speed"]) == 2 and "--fit is for --chat" in capsys.readouterr().err


def test_the_turns_that_are_said_to_fit_do(planned: Any) -> None:
    """A turn takes 258 KB here, a block of 64 slots 197: what fits in a budget is asked of the plan, not computed beside it."""
    budget = planned("memory", talk=Conversation(2, 24, 60)).lower_bound.budget_bytes
    with pytest.raises(UsageError, match=": 2 turns fit"):
        planned(memory=budget)


def test_a_head_is_expected_to_give_what_was_measured_of_it_or_what_heads_give(tmp_path: Path) -> None:
    head = tmp_path / "head"
    shutil.copytree(head_path(), head, ignore=shutil.ignore_patterns(FILE))
    options = Options(method=f"eagle:{head}")
    plan = replace(PLAN, items={**PLAN.items, "draft head": 10**6}, draft_level_bytes=10**5)
    unknown = drafting_of(options, plan)
    assert unknown is not None and unknown.head_bytes == 11 * 10**5
    assert unknown.tokens(HEAD_TOKENS + 1, 2 * HEAD_TOKENS / (HEAD_TOKENS + 1)) == pytest.approx(HEAD_TOKENS, rel=1e-6)
    Start(tokens_per_pass=2.5).save(head)
    known = drafting_of(Options(method=f"eagle:{head}"), plan)
    assert known is not None and known.agrees < unknown.agrees
    assert drafting_of(options, PLAN) is None, "nobody drafts"

"""The product's promise, end to end on a prepared Store: whatever drafts, whatever streams, the text is plain decoding's."""

import importlib.util
import random
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import opened, save
from understudy import LLM, SamplingParams
from understudy.devices.thread_choice import SizeChoice, Threads, choices
from understudy.errors import TransferError, UsageError
from understudy.kernels import team
from understudy.plan.machine import cores

PROMPT = "def draft(tree):\n    for node in tree:"
PARAMS = [
    SamplingParams(max_new_tokens=40, ignore_eos=True),
    SamplingParams(max_new_tokens=40, ignore_eos=True, temperature=0.8, seed=11),
    SamplingParams(max_new_tokens=40, ignore_eos=True, temperature=1.1, top_p=0.9, top_k=40, min_p=0.01, seed=2**40),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llm") / "model"
    save(path, "llama", torch.bfloat16)
    return path


@pytest.fixture(scope="module")
def plain(model: Path) -> list[list[int]]:
    with opened(model, method="none") as llm:
        done = [llm.generate(PROMPT, params)[0] for params in PARAMS]
    assert all(c.stats.mean_accepted == 1 and c.stats.bytes_streamed > 0 for c in done)
    return [c.token_ids for c in done]


@pytest.mark.parametrize(
    "options",
    [
        {"method": "substitute"},
        {"method": "substitute:width=4,depth=6"},
        {"method": "substitute", "quantizer": "int8"},
        {"method": "substitute", "resident": "auto"},
        {"method": "ngram"},
        {"method": "ngram:match=2,length=40"},
        {"method": "none", "resident": "auto"},
        {"method": "substitute", "rows": 3, "context": 300},
    ],
    ids=str,
)
def test_every_method_and_plan_gives_the_same_tokens(model: Path, plain: list[list[int]], options: dict[str, Any]) -> None:
    with opened(model, **options) as llm:
        for params, expected in zip(PARAMS, plain, strict=True):
            done = llm.generate(PROMPT, params)[0]
            assert done.token_ids == expected
            assert done.finish_reason == "length"
            if options["method"].startswith("substitute"):
                assert done.stats.accepted > 0 and done.stats.rounds < 39
            assert (done.stats.bytes_streamed > 0) == (options.get("resident") != "auto")


def test_a_perfect_drafter_is_accepted_to_full_depth(tmp_path: Path) -> None:
    save(tmp_path / "single", "llama", torch.float32)
    with opened(tmp_path / "single", quantizer="exact", method="substitute:width=1,depth=8") as llm:
        for params in PARAMS:
            stats = llm.generate(PROMPT, params)[0].stats
            assert (stats.rounds, stats.drafted, stats.accepted) == (5, 34, 34), "4 x (8 and a bonus), 2 and a bonus"


def test_a_second_model_drafts(model: Path, plain: list[list[int]], tmp_path: Path) -> None:
    save(tmp_path / "other", "llama", torch.bfloat16, seed=5, num_hidden_layers=1)
    for other, right in ((model, True), (tmp_path / "other", False)):
        with opened(model, method=f"classic:{other},width=1,depth=6") as llm:
            done = [llm.generate(PROMPT, params)[0] for params in PARAMS]
        assert [c.token_ids for c in done] == plain
        assert (done[0].stats.mean_accepted > 5) == right


def test_rows_run_together_and_each_gets_what_it_gets_alone(model: Path) -> None:
    prompts = [PROMPT * (1 + i % 3) + str(i) for i in range(7)]
    several = [
        SamplingParams(max_new_tokens=5 + 9 * (i % 4), ignore_eos=True, temperature=0.7 * (i % 2), seed=i) for i in range(7)
    ]
    with opened(model) as llm:
        alone = [llm.generate(prompt, params)[0].token_ids for prompt, params in zip(prompts, several, strict=True)]
    for method in ("none", "substitute"):
        with opened(model, rows=3, method=method) as llm:
            before = llm.model.supply.bytes_used
            together = llm.generate(prompts, several)
            sweeps = (llm.model.supply.bytes_used - before) / llm.plan.streamed_bytes
            passes = llm.engine.clock.passes
        assert [c.token_ids for c in together] == alone
        assert sweeps == passes, "one sweep of the weights serves all rows"
        assert passes < sum(len(ids) for ids in alone)


SHORT = [replace(params, max_new_tokens=9) for params in PARAMS]
LENGTHS = (2, 17, 90, 230)


@pytest.fixture(scope="module")
def crowd(model: Path) -> Iterator[tuple[LLM, dict[tuple[int, int], list[int]]]]:
    """A model with three rows whose passes hold few nodes, and what each of some requests gives alone, undrafted."""
    with opened(model, method="none") as llm:
        ids = llm.prompt_ids(PROMPT)
        asked = {(length, which): params for length in LENGTHS for which, params in enumerate(SHORT)}
        texts = {key: llm.generate([_prompt(ids, key[0])], params)[0].token_ids for key, params in asked.items()}
    with opened(model, rows=3) as llm:
        llm.engine.max_nodes = llm.model.tree_nodes + 32
        yield llm, texts


def _prompt(ids: list[int], length: int) -> list[int]:
    return [*range(length % 7, length % 7 + 1), *(ids * length)[: length - 1]]


ARRIVAL = st.tuples(st.integers(0, 6), st.sampled_from(LENGTHS), st.integers(0, len(SHORT) - 1), st.none() | st.integers(1, 5))


@settings(max_examples=3, deadline=None)
@given(st.lists(ARRIVAL, min_size=2, max_size=6))
def test_who_comes_and_goes_changes_no_text_and_everybody_goes_on_in_every_pass(
    crowd: tuple[LLM, dict[tuple[int, int], list[int]]], arrivals: list[tuple[int, int, int, int | None]]
) -> None:
    llm, texts = crowd
    ids = llm.prompt_ids(PROMPT)
    scheduler = llm.scheduler
    requests = [llm.request(_prompt(ids, length), SHORT[which]) for _, length, which, _ in arrivals]
    passes = 0
    while passes <= 6 or not scheduler.idle:
        for request, (first, _, _, stays) in zip(requests, arrivals, strict=True):
            if passes == first:
                scheduler.submit(request)
            if stays is not None and passes == first + stays:
                scheduler.cancel(request)
        decoding = {request: request.sequence.produced for request in scheduler.running if request.sequence.produced}
        if not scheduler.idle:
            scheduler.step()
        assert all(request.sequence.produced > count for request, count in decoding.items()), "a request stood still"
        passes += 1
    for request, (_, length, which, _) in zip(requests, arrivals, strict=True):
        done, alone = request.completion(), texts[length, which]
        whole = done.finish_reason == "length"
        assert done.token_ids == (alone if whole else alone[: len(done.token_ids)])
        assert whole or request.cancelled


def test_a_prompt_takes_one_sweep_whatever_its_length(model: Path) -> None:
    with opened(model) as llm:
        for count in (1, 33, 200):
            done = llm.generate([[3 + i % 200 for i in range(count)]], SamplingParams(max_new_tokens=1, ignore_eos=True))[0]
            assert done.stats.bytes_streamed == llm.plan.streamed_bytes and len(done.token_ids) == 1


def test_a_note_that_comes_later_is_in_every_view_of_the_plan(model: Path) -> None:
    with opened(model) as llm:
        before = llm.generate(PROMPT, SamplingParams(max_new_tokens=2))[0]
        with pytest.warns(RuntimeWarning, match="came later"):
            llm.model.say("this came later")
        after = llm.generate(PROMPT, SamplingParams(max_new_tokens=2))[0]
        assert llm.plan.notes[-1] == "this came later" and llm.plan is llm.model.plan
        assert after.stats.plan == llm.plan.to_dict() and after.stats.plan["notes"][-1] == "this came later"
    assert "this came later" not in before.stats.plan["notes"]


def test_text_streams_and_stops_where_plain_decoding_stops(model: Path) -> None:
    with opened(model) as llm:
        whole = llm.generate(PROMPT, PARAMS[0])[0]
        steps = list(llm.stream(PROMPT, PARAMS[0]))
        assert "".join(step.text for step in steps) == whole.text
        assert [i for step in steps for i in step.token_ids] == whole.token_ids
        assert [step.finish_reason for step in steps][-1] == "length" and not any(s.finish_reason for s in steps[:-1])
        letters = next(i for i in range(8, len(whole.text)) if whole.text[i : i + 2] not in whole.text[: i + 1])
        stop = whole.text[letters : letters + 2]
        stopped = llm.generate(PROMPT, SamplingParams(max_new_tokens=40, ignore_eos=True, stop=(stop,)))[0]
        assert stopped.finish_reason == "stop" and stopped.text == whole.text[:letters]
        assert stopped.token_ids == whole.token_ids[: len(stopped.token_ids)]
        ending = whole.token_ids[20]
        llm.maker.stop_ids = frozenset({ending})
        ended = llm.generate(PROMPT, SamplingParams(max_new_tokens=40))[0]
        cut = whole.token_ids.index(ending) + 1
        assert ended.token_ids == whole.token_ids[:cut] and ended.finish_reason == "stop"
        streamed = [i for step in llm.stream(PROMPT, SamplingParams(max_new_tokens=40)) for i in step.token_ids]
        assert streamed == ended.token_ids, "nothing after the end mark is shown"


def test_what_is_left_early_does_not_disturb_what_follows(model: Path, plain: list[list[int]]) -> None:
    with opened(model) as llm:
        steps: Iterator[Any] = llm.stream(PROMPT, PARAMS[1])
        next(steps)
        next(steps)
        steps.close()  # type: ignore[attr-defined]
        assert llm.generate(PROMPT, PARAMS[0])[0].token_ids == plain[0]


def test_callers_in_several_threads_share_the_passes_and_keep_their_texts(model: Path, plain: list[list[int]]) -> None:
    with opened(model, rows=3) as llm:
        found: dict[int, list[int]] = {}

        def call(i: int) -> None:
            if i == 1:
                found[i] = [token for step in llm.stream(PROMPT, PARAMS[i]) for token in step.token_ids]
            else:
                found[i] = llm.generate(PROMPT, PARAMS[i])[0].token_ids

        leaving = llm.stream(PROMPT, PARAMS[2])
        next(leaving)
        threads = [threading.Thread(target=call, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        leaving.close()  # type: ignore[attr-defined]
        for thread in threads:
            thread.join(120)
        assert [found[i] for i in range(3)] == plain
        assert llm.scheduler.idle and llm.model.supply.bytes_used > 0


@pytest.mark.skipif(not team.parallel(), reason="torch's threads were not found")
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="/proc does not tell threads")
def test_the_caller_keeps_no_threads_that_another_threads_passes_would_wait_behind(model: Path) -> None:
    threads = torch.get_num_threads()
    with opened(model) as llm:
        torch.set_num_threads(2)
        try:
            for call in (lambda: llm.generate(PROMPT, PARAMS[0]), lambda: list(llm.stream(PROMPT, PARAMS[0]))):
                torch.ones(400, 400) @ torch.ones(400, 400)
                before = len(list(Path("/proc/self/task").iterdir()))
                call()
                assert len(list(Path("/proc/self/task").iterdir())) < before
        finally:
            torch.set_num_threads(threads)


def test_no_number_of_threads_that_shares_the_work_changes_a_text(
    model: Path, plain: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, chance, taken = torch.get_num_threads(), random.Random(5), set()

    def any_of(choice: SizeChoice) -> Threads:
        found = chance.choice(choice.options)
        taken.add(found)
        return found

    monkeypatch.setattr(SizeChoice, "threads", property(any_of))
    torch.set_num_threads(4)
    try:
        with opened(model, rows=3) as llm:
            done = [llm.generate(PROMPT, params)[0] for params in PARAMS]
            together = [completion.token_ids for completion in llm.generate([PROMPT] * 3, PARAMS)]
    finally:
        torch.set_num_threads(threads)
    assert taken == set(choices(min(4, cores()))) and all(c.stats.mean_accepted > 1 for c in done)
    assert [c.token_ids for c in done] == together == plain


def test_hundreds_of_prompts_run_as_one_batch_that_goes_on(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results have the order of the prompts, and only few requests exist at a time."""
    prompts = [[1 + n % 200, 2 + n % 7, n % 50] for n in range(300)]
    params = [SamplingParams(max_new_tokens=2 + n % 5, ignore_eos=True, temperature=n % 2, seed=n) for n in range(300)]
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most, told = [0], []
    with opened(model, rows=4, method="none") as llm:
        make = llm.maker.request

        def counted(*given: Any, **more: Any) -> Any:
            alive.add(request := make(*given, **more))
            most[0] = max(most[0], len(alive))
            return request

        monkeypatch.setattr(llm.maker, "request", counted)
        found = llm.generate(prompts, params, progress=lambda *said: told.append(said))
        passes = llm.engine.clock.passes
        assert [len(done.token_ids) for done in found] == [own.max_new_tokens for own in params]
        for n in range(0, 300, 23):
            assert llm.generate(prompts[n], params[n])[0].token_ids == found[n].token_ids
    tokens = sum(own.max_new_tokens for own in params)
    assert tokens / 4 <= passes < 1.15 * tokens / 4, "the rows were not kept busy"
    assert most[0] <= 2 * 4 + 1
    assert told[0] == ("generating", 1, 300) and told[-1] == ("generating", 300, 300) and len(told) == 300


def test_a_prompt_among_many_that_cannot_be_continued_is_named_before_any_work(model: Path) -> None:
    with opened(model) as llm:
        passes = llm.engine.clock.passes
        for wrong, says in (([1] * 256, "has 256 tokens"), ([], "is empty"), ([700], "vocabulary"), (5, "a text or a list")):
            with pytest.raises(UsageError, match=rf"^prompts\[2\]: .*{says}"):
                llm.generate(["a", "b", wrong, "d"])  # type: ignore[list-item]
        with pytest.raises(UsageError, match=r"^prompts\[1\]: params must be SamplingParams"):
            llm.generate(["a", "b"], [SamplingParams(), {"top_p": 1}])  # type: ignore[list-item]
        with pytest.raises(UsageError, match="2 prompts but 3 SamplingParams"):
            llm.generate(["a", "b"], [SamplingParams()] * 3)
        assert llm.engine.clock.passes == passes and llm.scheduler.idle


def test_an_error_among_many_prompts_leaves_nothing_behind(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(model, rows=2) as llm:
        few = SamplingParams(max_new_tokens=4, ignore_eos=True)

        def interrupted(stage: str, done: float, total: float) -> None:
            if done == 5:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            llm.generate([[n] for n in range(1, 40)], few, progress=interrupted)
        assert llm.scheduler.idle
        assert len(llm.generate([[n] for n in range(1, 9)], few)) == 8


def test_a_request_is_charged_its_share_of_the_passes(model: Path) -> None:
    params = [SamplingParams(max_new_tokens=count, ignore_eos=True) for count in (8, 30)]
    with opened(model, rows=2, method="none") as llm:
        before = llm.model.supply.bytes_used
        short, long = llm.generate([PROMPT, PROMPT], params)
        used = llm.model.supply.bytes_used - before
    assert abs(short.stats.bytes_streamed + long.stats.bytes_streamed - used) <= 2
    assert used == 30 * llm.plan.streamed_bytes and short.stats.bytes_streamed == 4 * llm.plan.streamed_bytes
    assert short.stats.decode_seconds < long.stats.decode_seconds and short.stats.rounds == 7


def test_a_failed_transfer_is_an_error_and_never_text(model: Path, plain: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(model) as llm:
        ring = llm.model.ring
        assert ring is not None
        real, calls = ring.next, iter(range(10_000))

        def failing() -> Any:
            if next(calls) == 30:
                raise TransferError("The disk went away: plug it in again.")
            return real()

        monkeypatch.setattr(ring, "next", failing)
        with pytest.raises(TransferError, match="disk went away"):
            llm.generate(PROMPT, PARAMS[0])
        assert llm.generate(PROMPT, PARAMS[0])[0].token_ids == plain[0]


def test_chat_reads_only_what_is_new(model: Path) -> None:
    params = SamplingParams(max_new_tokens=12, ignore_eos=True)
    with opened(model) as llm:
        talk = [{"role": "user", "content": "What is a tree?"}]
        first = llm.chat(talk, params)
        talk += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And a leaf?"}]
        kept = len(llm.engine.kept[0].tokens)
        second = llm.chat(talk, params)
        assert kept > first.stats.prompt_tokens
    with opened(model, method="none") as llm:
        assert llm.chat(talk, params).token_ids == second.token_ids


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda llm: llm.generate(""), "empty"),
        (lambda llm: llm.generate([]), "no prompt"),
        (lambda llm: llm.generate([[1, 999]]), "999"),
        (lambda llm: llm.generate("x" * 400), "context"),
        (lambda llm: llm.generate(["a", "b"], [SamplingParams()]), "2 prompts"),
        (lambda llm: llm.generate(None), "no prompt"),
        (lambda llm: llm.generate(5), "no prompt"),
        (lambda llm: llm.generate({"a": 1}), "no prompt"),
        (lambda llm: llm.generate(b"abc"), "no prompt"),
        (lambda llm: llm.generate([None]), "a list of token ids, got None"),
        (lambda llm: llm.generate([1.5]), "got 1.5"),
        (lambda llm: llm.generate([[1, 1.5]]), "got .1, 1.5."),
        (lambda llm: llm.generate([["a"]]), "a list of token ids"),
        (lambda llm: llm.stream(None), "got None"),
        (lambda llm: llm.generate("a", {"temperature": 1}), "must be SamplingParams"),
        (lambda llm: llm.generate("a", "greedy"), "must be SamplingParams"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(model: Path, call: Any, words: str) -> None:
    with opened(model) as llm, pytest.raises(UsageError, match=words) as refusal:
        call(llm)
    assert "\n" not in str(refusal.value)


def test_arrays_and_tensors_of_token_ids_are_prompts(model: Path) -> None:
    few = SamplingParams(max_new_tokens=3, ignore_eos=True)
    with opened(model) as llm:
        wanted = [done.token_ids for done in llm.generate([[1, 2, 3], [4, 5, 6]], few)]
        ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
        for given in (ids, ids.numpy(), list(ids), list(ids.numpy())):
            assert [done.token_ids for done in llm.generate(given, few)] == wanted
        for one in (ids[0], ids[0].numpy(), list(ids[0].numpy())):
            assert [done.token_ids for done in llm.generate(one, few)] == wanted[:1]


def test_closing_waits_for_the_pass_under_way_and_ends_what_others_wait_for(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass that went on would read files by numbers that may be those of other files by then."""
    with opened(model) as llm:
        passing, go_on = threading.Event(), threading.Event()
        step, lookup = llm.engine.step, llm.model.lookup.close
        told: list[str] = []

        def held_up(*given: Any) -> Any:
            passing.set()
            assert go_on.wait(60)
            found = step(*given)
            told.append("passed")
            return found

        def generate() -> None:
            with pytest.raises(UsageError, match="closed"):
                llm.generate(PROMPT, PARAMS[0])
            told.append("heard")

        monkeypatch.setattr(llm.engine, "step", held_up)
        monkeypatch.setattr(llm.model.lookup, "close", lambda: (told.append("closed"), lookup()))
        unbegun = llm.stream(PROMPT, PARAMS[0])
        caller = threading.Thread(target=generate)
        caller.start()
        assert passing.wait(60)
        closing = threading.Thread(target=llm.close)
        closing.start()
        closing.join(0.2)
        assert closing.is_alive() and not told
        go_on.set()
        closing.join(60)
        caller.join(60)
        assert told.index("passed") < told.index("closed") and sorted(told) == ["closed", "heard", "passed"]
        with pytest.raises(UsageError, match="closed"):
            next(unbegun)


@pytest.mark.parametrize("resident", ["none", "auto"])
def test_a_model_that_is_closed_says_so_wherever_its_weights_lie(model: Path, resident: str) -> None:
    with opened(model, resident=resident) as llm:
        pass
    for call in (llm.generate, llm.stream):
        with pytest.raises(UsageError, match="closed"):
            call("a")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"memory": "100MB"}, "smallest that works"),
        ({"method": "substitut"}, "Did you mean 'substitute'"),
        ({"method": "substitute:widht=3"}, "Did you mean 'width'"),
        ({"method": "substitute:width=3"}, "both width and depth"),
        ({"method": "classic"}, "classic:MODEL"),
        ({"policy": "raged"}, "Did you mean 'ragged'"),
        ({"dtype": "bf16"}, "dtype"),
        ({"bits": 5}, "bits"),
        ({"context": 100_000}, "positions"),
        ({"colour": "red"}, "No option 'colour'"),
    ],
)
def test_options_that_make_no_sense_are_refused(model: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        opened(model, **options)


def test_the_smallest_budget_named_is_one_that_works(model: Path) -> None:
    with pytest.raises(UsageError) as refusal:
        LLM.plan_only(model, memory="64MiB", context=256, rows=1)
    smallest = str(refusal.value).split("here is ")[1].rstrip(".").split(",")[0]
    plan = LLM.plan_only(model, memory=smallest.replace(" ", ""), context=256, rows=1)
    assert plan.used <= plan.budget_bytes


def test_a_long_prompt_read_in_pieces_gives_the_same_tokens(model: Path) -> None:
    """Under a budget that leaves room for a few tiles, a prompt takes several sweeps; no token changes."""
    ids = [(i * i * 7 + i // 3) % 251 for i in range(300)]
    with opened(model, context=400) as llm:
        assert llm.plan.passes.tiles * 32 > 400 and not llm.plan.notes
        expected = [llm.generate([ids], params)[0].token_ids for params in PARAMS]
    with opened(model, context=400) as llm:
        llm.engine.max_nodes = 3 * 32
        policy = llm.engine.drafter.policy  # type: ignore[attr-defined]
        policy.limits = replace(policy.limits, nodes=2 * 32)  # a plan leaves room for trees beside prompts
        done = [llm.generate([ids], params)[0] for params in PARAMS]
        assert [c.token_ids for c in done] == expected
        assert done[0].stats.bytes_streamed == llm.plan.streamed_bytes * (done[0].stats.rounds + 4), "four sweeps for 300 tokens"
        assert done[0].stats.accepted > 0


def test_a_cpu_loads_no_gpu_compiler_and_no_vocabulary_twice(model: Path) -> None:
    words = "import sys; from understudy import LLM; import understudy.llm; print('triton' in sys.modules); import triton"
    if importlib.util.find_spec("triton") and not torch.cuda.is_available():
        said = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True, timeout=120)
        assert said.stdout.split() == ["False"]
    with opened(model) as llm:
        assert not {"_vocab", "_merges"} & set(vars(llm.tokenizer))
        assert llm.tokenizer.decode(llm.tokenizer(PROMPT)["input_ids"]) == PROMPT

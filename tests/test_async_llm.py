"""`AsyncLLM` as a program uses it: each task has the text of the model alone, and what ends early leaves nothing behind."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import torch

from tests.tiny import save
from understudy import LLM, AsyncLLM, Constraint, SamplingParams
from understudy.errors import TransferError, UsageError
from understudy.service import Unavailable

CHAT = [{"role": "user", "content": "The quick brown fox"}]
LONG = SamplingParams(max_new_tokens=200, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("async") / "tiny"
    save(path, "llama-tied", torch.bfloat16)
    with LLM(path, context=256, rows=2, resident="none") as model:
        yield model


def greedy(count: int) -> SamplingParams:
    return SamplingParams(max_new_tokens=count, ignore_eos=True)


@asynccontextmanager
async def held(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[threading.Event]:
    """Passes wait for this event."""
    go = threading.Event()
    step = llm.engine.step

    def waiting(*arguments: Any) -> Any:
        go.wait(60)
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(llm.engine, "step", waiting)
        try:
            yield go
        finally:
            go.set()


async def until(true: Any) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


def test_tasks_share_passes_and_have_their_own_texts(llm: LLM) -> None:
    prompts = [f"text {n}" for n in range(12)]
    params = [SamplingParams(max_new_tokens=5 + n, ignore_eos=True, temperature=n % 2, seed=n) for n in range(12)]
    alone = [llm.generate(prompt, own)[0] for prompt, own in zip(prompts, params, strict=True)]
    chat = llm.chat(CHAT, greedy(9))

    async def ask() -> None:
        async with AsyncLLM(llm) as model:

            async def streamed(n: int) -> str:
                return "".join([step.text async for step in model.stream(prompts[n], params[n])])

            before = llm.engine.clock.passes
            told: list[Any] = []
            texts, found, answer, steps = await asyncio.gather(
                asyncio.gather(*map(streamed, range(12))),
                model.generate(prompts, params, progress=lambda *said: told.append(said)),
                model.chat(CHAT, greedy(9)),
                _all(model.stream_chat(CHAT, greedy(9))),
            )
            assert llm.engine.clock.passes - before < sum(len(done.token_ids) for done in alone)
            assert texts == [done.text for done in alone]
            assert [done.token_ids for done in found] == [done.token_ids for done in alone]
            assert found[3].stats.accepted > 0 and found[3].stats.bytes_streamed > 0
            assert answer.text == "".join(steps) == chat.text
            assert told[-1] == ("generating", 12, 12)
        with pytest.raises(UsageError, match="not open"):
            await model.generate("x")

    async def _all(steps: Any) -> list[str]:
        return [step.text async for step in steps]

    asyncio.run(ask())
    assert llm.scheduler.idle and llm.generate("x", greedy(2)), "the LLM that was lent stays open"


def test_a_task_that_is_cancelled_gives_its_places_back(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> None:
        async with AsyncLLM(llm) as model, held(llm, monkeypatch) as go:
            tasks = [asyncio.create_task(model.generate([f"{n}", f"{n} more"], LONG)) for n in range(3)]
            await until(lambda: len(llm.scheduler.running) + len(llm.scheduler.waiting) == 6)
            for task in tasks:
                task.cancel()
            for task in tasks:
                with pytest.raises(asyncio.CancelledError):
                    await task
            go.set()
            await until(lambda: llm.scheduler.idle)
            passes = llm.engine.clock.passes
            assert len((await model.generate("x", greedy(1)))[0].token_ids) == 1
            assert llm.engine.clock.passes == passes + 1

    asyncio.run(ask())


def test_a_stream_that_is_left_gives_its_place_back(llm: LLM) -> None:
    async def ask() -> None:
        async with AsyncLLM(llm) as model:
            steps = model.stream("once", LONG)
            async for step in steps:
                assert step.token_ids
                break
            await steps.aclose()
            await until(lambda: llm.scheduler.idle)
            unbegun = model.stream("twice", LONG)
            await asyncio.sleep(0.05)
            assert llm.scheduler.idle, "a stream that nobody begins costs nothing"
            await unbegun.aclose()

    asyncio.run(ask())


def test_an_error_in_a_pass_reaches_those_it_served_and_no_others(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = llm.generate("later", greedy(6))[0].text
    verify = llm.engine.verify

    async def ask() -> None:
        async with AsyncLLM(llm) as model:
            faults = [TransferError("12 of 8192 bytes"), RuntimeError("a bug")]

            def failing(*arguments: Any) -> Any:
                if faults:
                    raise faults.pop(0)
                return verify(*arguments)

            monkeypatch.setattr(llm.engine, "verify", failing)
            with pytest.raises(TransferError, match="12 of 8192"):
                await model.generate("x", greedy(3))
            with pytest.raises(RuntimeError, match="a bug"):
                async for _ in model.stream("x", greedy(3)):
                    pass
            assert (await model.generate("later", greedy(6)))[0].text == alone

    asyncio.run(ask())


def test_one_that_fails_ends_the_others_of_its_call(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> None:
        async with AsyncLLM(llm) as model:
            make = llm.maker.request
            count = [0]

            def failing(*given: Any, **more: Any) -> Any:
                count[0] += 1
                if count[0] == 6:
                    raise UsageError("no more")
                return make(*given, **more)

            monkeypatch.setattr(llm.maker, "request", failing)
            with pytest.raises(UsageError, match="no more"):
                await model.generate([f"{n}" for n in range(20)], greedy(3))
            assert count[0] == 6
            await until(lambda: llm.scheduler.idle)

    asyncio.run(ask())


def test_several_event_loops_use_one_model(llm: LLM) -> None:
    alone = [llm.generate(f"loop {n}", greedy(12))[0].text for n in range(4)]
    found: dict[int, str] = {}

    async def ask() -> None:
        async with AsyncLLM(llm) as model:

            def loop(n: int) -> None:
                found[n] = asyncio.run(model.generate(f"loop {n}", greedy(12)))[0].text

            await asyncio.gather(*(asyncio.to_thread(loop, n) for n in range(4)))

    asyncio.run(ask())
    assert [found[n] for n in range(4)] == alone


def test_closing_ends_what_runs_with_an_error_and_nobody_elses_requests(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = llm.generate("another", greedy(9))[0].text

    async def ask() -> None:
        model = await AsyncLLM(llm).open()
        with pytest.raises(UsageError, match="open already"):
            await model.open()
        async with held(llm, monkeypatch) as go:
            waiting = [asyncio.create_task(model.generate(f"{n}", LONG)) for n in range(3)]
            await until(lambda: len(llm.scheduler.running) + len(llm.scheduler.waiting) == 3)
            # of a thread that uses the same LLM
            other = asyncio.create_task(asyncio.to_thread(llm.generate, "another", greedy(9)))
            await until(lambda: len(llm.scheduler.running) + len(llm.scheduler.waiting) == 4)
            service = model._service
            assert service is not None
            closing = asyncio.create_task(model.close())
            await until(lambda: service.trouble)
            go.set()
            await closing
            for task in waiting:
                with pytest.raises(Unavailable, match="it was closed"):
                    await task
            assert (await other)[0].text == alone
        again = await model.open()
        assert (await again.generate("another", greedy(9)))[0].text == alone
        await again.close()
        await again.close()

    asyncio.run(ask())


def test_mistakes_are_told_before_any_work(llm: LLM) -> None:
    async def ask() -> None:
        with pytest.raises(UsageError, match="not open"):
            AsyncLLM(llm).stream("x")
        with pytest.raises(UsageError, match="options already"):
            AsyncLLM(llm, memory="8GiB")
        async with AsyncLLM(llm) as model:
            passes = llm.engine.clock.passes
            with pytest.raises(UsageError, match=r"^prompts\[1\]: "):
                await model.generate(["x", [1] * 256])
            with pytest.raises(UsageError, match="is empty"):
                model.stream("")
            for wrong in ({"temperature": 1}, 0.5):
                with pytest.raises(UsageError, match="params must be SamplingParams"):
                    model.stream("x", wrong)  # type: ignore[arg-type]
                with pytest.raises(UsageError, match="params must be SamplingParams"):
                    await model.generate("x", wrong)  # type: ignore[arg-type]
            with pytest.raises(UsageError, match="conversation"):
                await model.chat([])
            assert llm.engine.clock.passes == passes

    asyncio.run(ask())


def test_forms_are_compiled_while_the_event_loop_goes_on(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    check = llm.maker.grammars.check

    def slow(constraint: Constraint) -> None:
        assert threading.current_thread() is not threading.main_thread()
        assert go.wait(60)
        check(constraint)

    async def ask() -> None:
        monkeypatch.setattr(llm.maker.grammars, "check", slow)
        form = SamplingParams(constraint=Constraint.regex("[a-z]{5}"), max_new_tokens=9)
        async with AsyncLLM(llm) as model:
            async def streamed(steps: Any) -> str:
                return "".join([step.text async for step in steps])

            asked: list[Any] = [model.chat(CHAT, form), model.generate("a", form), streamed(model.stream("a", form))]
            asked.append(streamed(model.stream_chat(CHAT, form)))
            tasks = [asyncio.create_task(one) for one in asked]
            # The loop is free, or this would never be reached.
            await asyncio.sleep(0.05)
            go.set()
            chat, (alone,), text, chat_text = await asyncio.gather(*tasks)
            assert chat.text == chat_text and alone.text == text and len(text) == len(chat_text) == 5
            with pytest.raises(UsageError, match="constraint cannot be used"):
                await streamed(model.stream("a", SamplingParams(constraint=Constraint.regex("("))))

    asyncio.run(ask())


def test_a_model_is_loaded_while_the_event_loop_goes_on(checkpoint: Any) -> None:
    async def ask() -> None:
        ticks = [0]

        async def tick() -> None:
            while True:
                await asyncio.sleep(0.001)
                ticks[0] += 1

        ticking = asyncio.create_task(tick())
        async with AsyncLLM(checkpoint, context=128, rows=1, method="none") as model:
            assert ticks[0] > 3
            assert len((await model.generate("x", greedy(3)))[0].token_ids) == 3
            inside = model.llm
        ticking.cancel()
        with pytest.raises(UsageError, match="closed"):
            inside.generate("x")

    asyncio.run(ask())


@pytest.mark.parametrize("whole", [False, True])
def test_an_opening_that_is_given_up_leaves_nothing_loaded(
    checkpoint: Any, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """In the middle of loading it ends at the next report; where the model was loaded and not told yet, that is closed."""
    reached, go = threading.Event(), threading.Event()
    told: list[str] = []
    made: list[LLM] = []
    load = LLM.__init__

    def loading(self: LLM, *given: Any, **options: Any) -> None:
        load(self, *given, **options)
        made.append(self)
        hold()

    def hold() -> None:
        reached.set()
        assert go.wait(60)

    def progress(stage: str, done: float, total: float) -> None:
        told.append(stage)
        if not whole:
            hold()

    if whole:
        monkeypatch.setattr(LLM, "__init__", loading)

    async def ask() -> int:
        model = AsyncLLM(checkpoint, context=128, rows=1, method="none", progress=progress)
        opening = asyncio.create_task(model.open())
        await until(reached.is_set)
        with pytest.raises(UsageError, match="open already"):
            await model.open()
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        with pytest.raises(UsageError, match="not open"):
            await model.generate("x")
        # The end of the loop waits for the thread that loads.
        threading.Timer(0.1, go.set).start()
        return len(told)

    assert asyncio.run(ask()) == len(told)
    assert [llm.maker.closing.alive for llm in made] == [False] * whole


def test_closing_that_is_given_up_is_done_all_the_same(checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> LLM:
        model = await AsyncLLM(checkpoint, context=128, rows=1, method="none").open()
        llm = model.llm
        async with held(llm, monkeypatch) as go:
            asked = asyncio.create_task(model.generate("x", greedy(50)))
            await until(lambda: llm.scheduler.running)
            closing = asyncio.create_task(model.close())
            await asyncio.sleep(0.05)
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
            assert llm.maker.closing.alive, "not before the pass under way has ended"
            go.set()
            with pytest.raises(Unavailable, match="it was closed"):
                await asked
        return llm

    assert not asyncio.run(ask()).maker.closing.alive


LEFT_OPEN = """
import asyncio, sys
from understudy import AsyncLLM, SamplingParams

async def main():
    llm = await AsyncLLM(sys.argv[1], context=256, rows=2, method="none").open()
    long = SamplingParams(max_new_tokens=200, ignore_eos=True)
    asked = asyncio.create_task(llm.generate(["a", "b"], long))
    async for step in llm.stream("c", long):
        break
    step = llm.llm.engine.step
    def slow(*given):
        print("passing", flush=True)
        found = step(*given)
        import time
        time.sleep(0.3)
        print("passed", flush=True)
        return found
    llm.llm.engine.step = slow
    await asyncio.sleep(0.1)

asyncio.run(main())
"""


def test_a_program_that_ends_without_closing_ends_well(checkpoint: Any) -> None:
    """A thread in the middle of a pass would bring the process down with the interpreter."""
    done = subprocess.run([sys.executable, "-c", LEFT_OPEN, str(checkpoint)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert words.count("passing") == words.count("passed") > 0

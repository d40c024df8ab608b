"""`AsyncLLM`, an `LLM` for programs with an event loop: one thread runs the passes, and tasks await what each pass gave them."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from .errors import UsageError
from .llm import LLM
from .params import SamplingParams
from .prompts import Prompt
from .request import Completion, Request, Step
from .service import Call, Service
from .sources import Report, ending

# Seconds after which a task that awaits a pass looks whether it missed one: it does not.
PATIENCE = 3600.0


class AsyncLLM:
    """A model whose requests are awaited.

        async with AsyncLLM("Qwen/Qwen2.5-7B-Instruct", memory="8GiB") as llm:
            print((await llm.chat([{"role": "user", "content": "Hello"}])).text)
            async for step in llm.stream("Once upon a time"):
                print(step.text, end="")

    All requests run together, those of several event loops too, and each gets the text it would get alone. A task that is
    cancelled, and a stream that is left, give their places back by the next pass.

    Args:
        model: as for `LLM`, loaded when this is opened; or an LLM, which stays open afterwards.
        progress: as for `LLM`.
        options: as for `LLM`.

    Raises what `LLM` raises, when it is opened."""

    def __init__(self, model: str | Path | LLM | None = None, *, progress: Report | None = None, **options: Any):
        if isinstance(model, LLM) and (options or progress is not None):
            raise UsageError("An LLM that is loaded has its options already: give it alone.")
        self._model = model
        self._progress = progress
        self._options = options
        self._llm: LLM | None = None
        self._service: Service | None = None
        self._opening = False

    @property
    def llm(self) -> LLM:
        """The model itself, with its plan, tokenizer and context. UsageError while it is not open."""
        if self._llm is None:
            raise UsageError("This AsyncLLM is not open: use it in `async with AsyncLLM(...) as llm`.")
        return self._llm

    async def open(self) -> AsyncLLM:
        """Load the model in a thread of its own, so that the event loop goes on, and start the thread that runs passes.

        A task that is cancelled meanwhile leaves nothing loaded. UsageError where it is open already, or about to be."""
        if self._llm is not None or self._opening:
            raise UsageError("This AsyncLLM is open already.")
        self._opening = True
        try:
            self._llm = self._model if isinstance(self._model, LLM) else await self._loaded(self._model)
        finally:
            self._opening = False
        self._service = Service(self._llm)
        self._service.start()
        return self

    async def _loaded(self, model: str | Path | None) -> LLM:
        """The model, loaded. Where nobody waits for it any more, loading ends with its next report."""
        left = threading.Event()
        found: list[LLM] = []
        report = ending(self._progress, left)

        def load() -> LLM:
            found.append(LLM(model, progress=report, **self._options))
            if left.is_set():
                found[0].close()
            return found[0]

        try:
            llm = await asyncio.to_thread(load)
        except asyncio.CancelledError:
            left.set()
            # Loaded, and not told yet.
            for llm in found:
                llm.close()
            raise
        if self._progress is None:
            # LLM does so where nobody hears its reports.
            for line in llm.generation.warnings:
                warnings.warn(line, stacklevel=2)
        return llm

    async def close(self) -> None:
        """End the thread after the pass under way. What was asked for and is not finished ends with an error."""
        llm, service = self._llm, self._service
        self._llm = self._service = None

        def end() -> None:
            if service is not None:
                service.close()
            if llm is not None and llm is not self._model:
                llm.close()

        # Whole, even where this task is cancelled, and beside the event loop: there may be much to give back.
        await asyncio.to_thread(end)

    async def __aenter__(self) -> AsyncLLM:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: Report | None = None,
    ) -> list[Completion]:
        """Continue prompts, any number of them. Args, Returns and Raises are those of `LLM.generate`."""
        llm = self.llm
        work = await asyncio.to_thread(llm.maker.checked, prompts, params)
        total = len(work)
        found: dict[int, Completion] = {}

        async def some() -> None:
            while work:
                place = total - len(work)
                ids, own = work.popleft()
                found[place] = await self._completion(await _made(partial(llm.maker.request, ids, own), own))
                if progress is not None:
                    progress("generating", len(found), total)

        tasks = [asyncio.create_task(some()) for _ in range(min(2 * llm.scheduler.rows, total))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [found[place] for place in range(total)]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> AsyncGenerator[Step]:
        """Continue one prompt, step by step, from when the first Step is asked for. Args and Raises are those of `LLM.stream`."""
        maker = self.llm.maker
        own = params or SamplingParams()
        return self._begun(partial(maker.request, maker.ids(prompt), own, streams=True), own)

    async def chat(self, messages: Sequence[dict[str, Any]], params: SamplingParams | None = None) -> Completion:
        """The assistant's next message. Args, Returns and Raises are those of `LLM.chat`."""
        maker = self.llm.maker
        make = partial(maker.request, maker.chat_ids(messages), params or SamplingParams(), chat=True)
        return await self._completion(await asyncio.to_thread(make))

    def stream_chat(self, messages: Sequence[dict[str, Any]], params: SamplingParams | None = None) -> AsyncGenerator[Step]:
        """The assistant's next message, step by step. Args and Raises are those of `LLM.chat`."""
        maker = self.llm.maker
        ids, own = maker.chat_ids(messages), params or SamplingParams()
        return self._begun(partial(maker.request, ids, own, chat=True, streams=True), own)

    def _begun(self, make: Callable[[], Request], params: SamplingParams) -> AsyncGenerator[Step]:
        """The steps of the request that `make` gives: it is made now, or, where the form of its text must be compiled, once the
        first Step is asked for."""
        return self._formed(make, params) if _has_form(params) else self._steps(make())

    async def _formed(self, make: Callable[[], Request], params: SamplingParams) -> AsyncGenerator[Step]:
        async with aclosing(self._steps(await _made(make, params))) as steps:
            async for step in steps:
                yield step

    async def _completion(self, request: Request) -> Completion:
        async with aclosing(self._steps(request)) as steps:
            async for _ in steps:
                pass
        return request.completion()

    async def _steps(self, request: Request) -> AsyncGenerator[Step]:
        """The steps of `request`, to its end. Raises what ended it; leaving early cancels it."""
        if self._service is None:
            raise UsageError("This AsyncLLM is closed: open it again.")
        call = Call(self._service, [request])
        self._service.submit([request])
        async with aclosing(call.steps(PATIENCE)) as steps:
            async for found in steps:
                if found is not None:
                    yield found[1]
        if call.error is not None:
            raise call.error


def _has_form(params: SamplingParams) -> bool:
    """Whether a text is held to a form. What is no SamplingParams at all is told when its request is made."""
    return isinstance(params, SamplingParams) and params.constraint is not None


async def _made(make: Callable[[], Request], params: SamplingParams) -> Request:
    """What `make` gives, in a thread where the form of its text must be compiled: that takes seconds, and the loop goes on."""
    return await asyncio.to_thread(make) if _has_form(params) else make()

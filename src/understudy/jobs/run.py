"""A job under way: some lines are answered at once, by the code of the server, and each has its record as soon as it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from ..api.settings import AnswerSettings
from ..service import Service
from .answering import Answering
from .ledger import Output
from .records import Line, tokens_of


@dataclass
class Job:
    """The lines of `input` that `output` has no record of, answered by `llm`, an LLM; `window` of them at a time.

    `told` is called whenever a line is done."""

    llm: Any
    settings: AnswerSettings
    input: BinaryIO
    output: Output
    window: int
    told: Callable[[], None] = lambda: None
    # Tokens that were generated, in this run alone.
    tokens: int = 0
    # Fields that change nothing and that some body has.
    ignored: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Answer all lines. Raises UnderstudyError where no line can be answered any more, KeyboardInterrupt at Ctrl-C.

        Whatever ends it, the records of finished lines are on the disk."""
        service = Service(self.llm)
        answering = Answering(self.llm, self.settings, service)
        service.start()
        try:
            asyncio.run(self._answer_all(answering))
        finally:
            self.ignored = answering.ignored
            service.close()

    async def _answer_all(self, answering: Answering) -> None:
        going: set[asyncio.Task[None]] = set()
        try:
            for line in self.output.left(self.input):
                going.add(asyncio.create_task(self._finish(answering, line)))
                if len(going) == self.window:
                    going = await _some_done(going)
            while going:
                going = await _some_done(going)
        finally:
            for task in going:
                task.cancel()
            await asyncio.gather(*going, return_exceptions=True)

    async def _finish(self, answering: Answering, line: Line) -> None:
        """Answer one line and write its record."""
        record = await answering.record(line)
        self.tokens += tokens_of(record)
        self.output.append(record)
        self.told()


async def _some_done(going: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """Those of `going` that are not done, once one is. Raises what ended one."""
    done, left = await asyncio.wait(going, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    return left

"""A job under way: some lines are answered at once, by the code of the server, and each has its record as soon as it is done."""

from __future__ import annotations

import asyncio
from typing import Any

from ..service import Service
from .answering import Answering
from .job import BatchJob
from .records import Line


class Job(BatchJob):
    """A job on one model in this process."""

    def run(self, llm: Any) -> None:
        """Answer all lines by `llm`, an LLM.

        Raises UnderstudyError where no line can be answered any more, KeyboardInterrupt at Ctrl-C.
        Whatever ends it, the records of finished lines are on the disk."""
        service = Service(llm)
        answering = Answering(llm, self.settings, service)
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
        self.keep(await answering.record(line))


async def _some_done(going: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """Those of `going` that are not done, once one is. Raises what ended one."""
    done, left = await asyncio.wait(going, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    return left

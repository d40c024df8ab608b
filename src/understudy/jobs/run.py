"""A job under way: some lines are answered at once, by the code of the server, and each has its record as soon as it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from pydantic import ValidationError

from ..api.answers import URLS, ApiAnswer, check_model
from ..api.errors import ApiError, answer_to, invalid
from ..api.settings import AnswerSettings
from ..errors import NumbersError, UnderstudyError, UsageError
from ..service import Service
from .ledger import Output
from .records import Asked, BadLine, Line, answered, lines, refused, unread

# Names of ignored fields that are kept for the summary.
MOST_IGNORED = 12


@dataclass
class Job:
    """The lines of `input` that `output` has no record of, answered by `llm`, an LLM; `window` of them at a time.

    `told` is called whenever a line is done."""

    llm: Any
    settings: AnswerSettings
    input: BinaryIO
    output: Output
    window: int
    told: Callable[[], None]
    # Tokens that were generated, in this run alone.
    tokens: int = 0
    # Fields that change nothing and that some body has.
    ignored: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Answer all lines. Raises UnderstudyError where no line can be answered any more, KeyboardInterrupt at Ctrl-C.

        Whatever ends it, the records of finished lines are on the disk."""
        service = Service(self.llm)
        service.start()
        try:
            asyncio.run(self._answer_all(service))
        finally:
            service.close()

    async def _answer_all(self, service: Service) -> None:
        going: set[asyncio.Task[None]] = set()
        try:
            for line in self._left():
                going.add(asyncio.create_task(self._finish(service, line)))
                if len(going) == self.window:
                    going = await _some_done(going)
            while going:
                going = await _some_done(going)
        finally:
            for task in going:
                task.cancel()
            await asyncio.gather(*going, return_exceptions=True)

    def _left(self) -> Iterator[Line]:
        """The lines that have no record yet."""
        self.input.seek(0)
        return (line for line in lines(self.input) if not self.output.holds(line))

    async def _finish(self, service: Service, line: Line) -> None:
        """Answer one line and write its record."""
        self.output.append(await self._record(service, line))
        self.told()

    async def _record(self, service: Service, line: Line) -> dict[str, Any]:
        if isinstance(line.asked, BadLine):
            return unread(line, line.asked)
        try:
            body = await self._answer(service, line.asked)
        except ValidationError as error:
            return refused(line, invalid(error.errors()))
        except ApiError as error:
            return refused(line, error)
        self.tokens += body["usage"]["completion_tokens"]
        return answered(line, body)

    async def _answer(self, service: Service, asked: Asked) -> dict[str, Any]:
        """The body of the answer. Raises ApiError or ValidationError for what concerns this line alone."""
        kind, make = URLS[asked.url]
        body = kind.model_validate(asked.body)
        if body.stream:
            raise ApiError(400, "stream is not for a batch: leave it out.", param="stream")
        check_model(body.model, self.settings)
        self.ignored |= set(body.ignored()[: MOST_IGNORED - len(self.ignored)])
        try:
            made = make(self.llm, body, self.settings)
        except UnderstudyError as error:
            raise answer_to(error) from None
        answer = ApiAnswer(service, self.settings, body, *made)
        try:
            return await answer.whole()
        except ApiError:
            fault = answer.call.error
            if isinstance(fault, UnderstudyError) and not isinstance(fault, (NumbersError, UsageError)):
                # The machine's fault, not the line's: it may be answered another time.
                raise fault from None
            raise


async def _some_done(going: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """Those of `going` that are not done, once one is. Raises what ended one."""
    done, left = await asyncio.wait(going, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    return left

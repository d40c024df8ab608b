"""One line at a time: its body is answered by the code of the server, and what comes of it is a record."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from ..api.answers import ApiAnswer
from ..api.asking import URLS, check_model
from ..api.errors import ApiError, answer_to, invalid
from ..api.settings import AnswerSettings
from ..errors import RequestError, UnderstudyError, UsageError
from ..service import Service
from .records import Asked, BadLine, Line, answered, refused, unread

# Names of ignored fields that are kept for the summary.
MOST_IGNORED = 12


@dataclass
class Answering:
    """Answers lines by `llm`, an LLM whose passes `service` runs."""

    llm: Any
    settings: AnswerSettings
    service: Service
    # Fields that change nothing and that some body has.
    ignored: set[str] = field(default_factory=set)

    async def record(self, line: Line) -> dict[str, Any]:
        """What `line` comes to. Raises UnderstudyError where no line can be answered any more."""
        if isinstance(line.asked, BadLine):
            return unread(line, line.asked)
        try:
            body = await self._answer(line.asked)
        except ValidationError as error:
            return refused(line, invalid(error.errors()))
        except ApiError as error:
            return refused(line, error)
        return answered(line, body)

    async def _answer(self, asked: Asked) -> dict[str, Any]:
        """The body of the answer. Raises ApiError or ValidationError for what concerns this line alone."""
        kind, asks = URLS[asked.url]
        posed = asks(kind.model_validate(asked.body), self.settings.model_name)
        if posed.body.stream:
            raise ApiError(400, "stream is not for a batch: leave it out.", param="stream")
        check_model(posed.body.model, self.settings)
        self.ignored |= set(posed.ignored[: MOST_IGNORED - len(self.ignored)])
        try:
            made = posed.make(self.llm, self.settings)
        except UnderstudyError as error:
            raise answer_to(error) from None
        answer = ApiAnswer(self.service, self.settings, posed.body, *made)
        try:
            return await answer.whole()
        except ApiError:
            fault = answer.call.error
            if isinstance(fault, UnderstudyError) and not isinstance(fault, (RequestError, UsageError)):
                # The machine's fault, not the line's: it may be answered another time.
                raise fault from None
            raise

"""Errors as clients of the OpenAI API expect them: a status, and an object with a message, a type, a parameter and a code."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from ..errors import RoomError, UnderstudyError, UsageError
from ..service import Unavailable

# What a client reads in `type`, by status; others are invalid requests (4xx) or errors of the server (5xx).
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    503: "overloaded_error",
}

# The same in /v1/messages.
MESSAGES_TYPES = {**TYPES, 413: "request_too_large"}

# A field of a body, or one of a tool in it.
NAME = re.compile(r"[a-z][a-z_]+|tools\.\d+\.[a-z_.]+")

# What pydantic adds to the place of a value that may be of several kinds, and how it begins to say what one is not.
KIND = re.compile(r"str|bool|int|float|(list|dict|literal)\[.*")
MISSED = "Input should be "


@dataclass
class ApiError(Exception):
    """A request that is answered with an error."""

    status: int
    message: str
    # The field of the request that is at fault.
    param: str | None = None
    # A word for programs, such as context_length_exceeded.
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """The JSON object that a client gets."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def error_body(error: ApiError, path: str) -> dict[str, Any]:
    """The JSON object that a client of `path` gets. /v1/messages has a form of its own."""
    if not path.startswith("/v1/messages"):
        return error.body()
    kind = MESSAGES_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    # By these words its clients know that a conversation must become shorter.
    what = f"prompt is too long: {error.message}" if error.code == "context_length_exceeded" else error.message
    told = {"type": kind, "message": what, "param": error.param, "code": error.code}
    return {"type": "error", "error": told, "request_id": None}


def invalid(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The answer to a body in which pydantic found `errors`: it tells what the first field must be."""
    where = _place(errors[0]["loc"])
    if not where and errors[0]["type"] == "missing":
        return ApiError(400, "The request has no body: it must be a JSON object.")
    # A value may be of several kinds: each says what it misses.
    kinds = dict.fromkeys(str(error["msg"]) for error in errors if _place(error["loc"]) == where)
    said = " or ".join(msg.removeprefix(MISSED) if place else msg for place, msg in enumerate(kinds))
    return ApiError(400, f"{where}: {said}" if where else said, param=where or None)


def _place(parts: Sequence[Any]) -> str:
    """The field that pydantic tells of, as the client wrote it: numbers are places in a list, and kinds of values are left out."""
    named = takewhile(lambda part: not KIND.fullmatch(str(part)), (part for part in parts if part != "body"))
    return ".".join(map(str, named))


def answer_to(error: BaseException) -> ApiError:
    """The answer to a request that `error` ended."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Unavailable):
        retry = {"Retry-After": str(error.retry_after)} if error.retry_after else {"x-should-retry": "false"}
        return ApiError(503, str(error), code="overloaded", headers=retry)
    if isinstance(error, UsageError):
        # Messages about one value begin with its name, which the API may have another word for.
        what = str(error).replace("max_new_tokens", "max_tokens")
        name = what.partition(" ")[0]
        code = error.code if isinstance(error, RoomError) else None
        return ApiError(400, what, param=name if NAME.fullmatch(name) else None, code=code)
    # Another try would end in the same way.
    once = {"x-should-retry": "false"}
    if isinstance(error, UnderstudyError):
        return ApiError(500, str(error), headers=once)
    return ApiError(500, "This is a bug of the server; its log says more.", headers=once)

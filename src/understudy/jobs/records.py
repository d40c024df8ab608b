"""Batch records as OpenAI defines them: what a line asks for, and the line that answers it.

A line in: `{"custom_id", "method": "POST", "url", "body"}`. A line out: `{"id", "custom_id", "response", "error"}`."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, BinaryIO

import xxhash

from ..api.asking import URLS
from ..api.errors import ApiError, error_body

# The longest line, in bytes: as long as the largest body that a server takes.
LONGEST = 32 << 20
# What the ids of records begin with.
ID = "batch_req_"


@dataclass(frozen=True)
class BadLine(Exception):
    """A line that asks for nothing that can be done. `code` is a word for programs."""

    code: str
    message: str
    # None where the line has none that can be used.
    custom_id: str | None = None


@dataclass(frozen=True)
class Asked:
    """What one line asks for."""

    custom_id: str
    url: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One line of the input. `number` counts from 1."""

    number: int
    text: bytes
    asked: Asked | BadLine

    @property
    def id(self) -> str:
        """The id of the record that answers this line: the same as long as the line is the same."""
        return f"{ID}{xxhash.xxh3_128_hexdigest(self.text)}"

    @property
    def key(self) -> bytes:
        """What tells this line from others, in 16 bytes."""
        return key_of(self.asked.custom_id, self.number)


def key_of(custom_id: str | None, number: int) -> bytes:
    """16 bytes that stand for a custom_id, or for line `number` where there is none."""
    return xxhash.xxh3_128_digest(f"line {number}".encode() if custom_id is None else f"id {custom_id}".encode())


def lines(file: BinaryIO) -> Iterator[Line]:
    """The lines of a file, without those that are blank. One line is in memory at a time."""
    for number in count(1):
        text = file.readline(LONGEST + 1)
        if not text:
            return
        rest = text
        while len(rest) > LONGEST and not rest.endswith(b"\n"):
            rest = file.readline(LONGEST + 1)
        if text := text.strip():
            yield line_of(number, text)


def line_of(number: int, text: bytes) -> Line:
    """Line `number`, which reads `text`, without blanks around it."""
    return Line(number, text, _asked(text))


def _asked(text: bytes) -> Asked | BadLine:
    if len(text) > LONGEST:
        return BadLine("line_too_long", f"The line is longer than {LONGEST >> 20} MiB.")
    try:
        record = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return BadLine("invalid_json", f"The line is no JSON: {error}.")
    if not isinstance(record, dict):
        return BadLine("invalid_json", "The line is no JSON object.")
    custom_id = record.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id or not _whole(custom_id):
        return BadLine("invalid_custom_id", f"custom_id must be a text that is not empty, got {repr(custom_id)[:80]}.")
    if record.get("method") != "POST":
        return BadLine("invalid_method", f"method must be POST, got {repr(record.get('method'))[:80]}.", custom_id)
    url = record.get("url")
    if not isinstance(url, str) or url not in URLS:
        return BadLine("invalid_url", f"url must be one of {', '.join(URLS)}, got {repr(url)[:80]}.", custom_id)
    body = record.get("body")
    if not isinstance(body, dict):
        return BadLine("invalid_body", f"body must be an object, got {repr(body)[:80]}.", custom_id)
    return Asked(custom_id, url, body)


def _whole(text: str) -> bool:
    """Whether `text` can be written: it holds no half of a character."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def answered(line: Line, body: dict[str, Any]) -> dict[str, Any]:
    """The record of a line that was answered with `body`."""
    return {**_begun(line), "response": _response(200, body), "error": None}


def refused(line: Line, error: ApiError) -> dict[str, Any]:
    """The record of a line whose body ended in `error`."""
    url = "" if isinstance(line.asked, BadLine) else line.asked.url
    body = error_body(error, url)
    told = {"code": error.code or body["error"]["type"], "message": error.message, "param": error.param, "line": line.number}
    return {**_begun(line), "response": _response(error.status, body), "error": told}


def unread(line: Line, bad: BadLine) -> dict[str, Any]:
    """The record of a line that asks for nothing that can be done."""
    told = {"code": bad.code, "message": bad.message, "param": None, "line": line.number}
    return {**_begun(line), "response": None, "error": told}


def tokens_of(record: dict[str, Any]) -> int:
    """How many tokens were generated for `record`."""
    if record["error"]:
        return 0
    usage = record["response"]["body"]["usage"]
    # The APIs of agents have another word for them.
    return int(usage["completion_tokens"] if "completion_tokens" in usage else usage["output_tokens"])


def _begun(line: Line) -> dict[str, Any]:
    return {"id": line.id, "custom_id": line.asked.custom_id}


def _response(status: int, body: dict[str, Any]) -> dict[str, Any]:
    return {"status_code": status, "request_id": f"req_{uuid.uuid4().hex}", "body": body}

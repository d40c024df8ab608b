"""Lines of a job as they are read: what is wrong with one is known, and concerns no other."""

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.api.errors import ApiError
from understudy.jobs import records
from understudy.jobs.records import Asked, BadLine, Line, answered, key_of, lines, refused, unread

GOOD = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}


def read(*texts: str | bytes) -> list[Line]:
    return list(lines(io.BytesIO(b"\n".join(text if isinstance(text, bytes) else text.encode() for text in texts))))


@given(st.lists(st.sampled_from([json.dumps(GOOD), "", "  \r", "nonsense", "[]"]), max_size=9))
def test_lines_are_counted_as_editors_count_them(texts: list[str]) -> None:
    found = read(*texts)
    assert [line.number for line in found] == [number for number, text in enumerate(texts, 1) if text.strip()]
    assert all(isinstance(line.asked, Asked) == (texts[line.number - 1] == json.dumps(GOOD)) for line in found)


def test_a_good_line_is_what_it_asks_for() -> None:
    (line,) = read(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r")
    assert line.asked == Asked("a", "/v1/completions", {"prompt": "x"})


@pytest.mark.parametrize(
    ("text", "code", "custom_id"),
    [
        ("{", "invalid_json", None),
        (b"\xff\xfe", "invalid_json", None),
        ("[" * 100_000, "invalid_json", None),
        ("1" * 5000, "invalid_json", None),
        ("[]", "invalid_json", None),
        ("{}", "invalid_custom_id", None),
        (json.dumps({**GOOD, "custom_id": ""}), "invalid_custom_id", None),
        (json.dumps({**GOOD, "custom_id": 5}), "invalid_custom_id", None),
        (json.dumps({**GOOD, "custom_id": "\ud800"}), "invalid_custom_id", None),
        (json.dumps({**GOOD, "method": "GET"}), "invalid_method", "a"),
        (json.dumps({**GOOD, "url": "/v1/embeddings"}), "invalid_url", "a"),
        (json.dumps({**GOOD, "url": ["/v1/completions"]}), "invalid_url", "a"),
        (json.dumps({**GOOD, "body": "x"}), "invalid_body", "a"),
    ],
)
def test_a_bad_line_says_why(text: Any, code: str, custom_id: str | None) -> None:
    (line,) = read(text)
    bad = line.asked
    assert isinstance(bad, BadLine) and (bad.code, bad.custom_id) == (code, custom_id)
    record = json.loads(json.dumps(unread(line, bad)))
    assert record["response"] is None and record["custom_id"] == custom_id
    assert record["error"]["code"] == code and record["error"]["line"] == 1 and "\n" not in record["error"]["message"]


def test_a_line_too_long_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "LONGEST", 1 << 10)
    long = json.dumps({**GOOD, "body": {"prompt": "x" * 5000}})
    before, found, after = read(json.dumps(GOOD), long, json.dumps({**GOOD, "custom_id": "b"}))
    assert isinstance(found.asked, BadLine) and found.asked.code == "line_too_long" and found.number == 2
    assert before.asked.custom_id == "a" and after.asked.custom_id == "b"


def test_records_have_the_form_that_clients_read() -> None:
    (line,) = read(json.dumps(GOOD))
    good = answered(line, {"id": "cmpl-1"})
    assert set(good) == {"id", "custom_id", "response", "error"} and good["error"] is None
    assert good["response"]["status_code"] == 200 and good["response"]["body"] == {"id": "cmpl-1"}
    bad = refused(line, ApiError(400, "Too long.", param="prompt", code="context_length_exceeded"))
    assert bad["response"]["status_code"] == 400 and bad["response"]["body"]["error"]["message"] == "Too long."
    assert bad["error"] == {"code": "context_length_exceeded", "message": "Too long.", "param": "prompt", "line": 1}
    assert good["id"] == bad["id"] and good["response"]["request_id"] != bad["response"]["request_id"]


@given(st.text(), st.text(), st.integers(1, 99), st.integers(1, 99))
def test_keys_tell_lines_apart(one: str, other: str, number: int, another: int) -> None:
    assert (key_of(one, number) == key_of(other, another)) == (one == other)
    assert (key_of(None, number) == key_of(None, another)) == (number == another)
    assert key_of(one, number) != key_of(None, number)

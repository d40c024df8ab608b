"""curl as people use it: whole answers, streams as they come, files, and what it shows where something is wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.server.conftest import Running, Start
from understudy import LLM, SamplingParams

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
CHAT = {"messages": [{"role": "user", "content": "The quick brown fox"}], "max_tokens": 20}


def curl(url: str, *words: str) -> str:
    """What curl prints."""
    command = ["curl", "--silent", "--show-error", "--max-time", "60", *words, url]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=90).stdout


def test_a_whole_answer_and_a_stream(server: Running, plain: LLM) -> None:
    expected = plain.chat(CHAT["messages"], SamplingParams(max_new_tokens=20)).text  # type: ignore[arg-type]
    url = f"{server.url}/v1/chat/completions"
    found = json.loads(curl(url, "--json", json.dumps(CHAT)))
    assert found["choices"][0]["message"]["content"] == expected
    lines = [line for line in curl(url, "-N", "--json", json.dumps({**CHAT, "stream": True})).splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    pieces = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content", "") for line in lines[:-1]]
    assert "".join(pieces) == expected


def test_a_large_file_is_sent_with_leave_or_refused(start: Start, tmp_path: Path) -> None:
    server = start(body_limit=2 << 20)
    head = ("-H", "Content-Type: application/json", "-o", "-", "-w", "%{http_code}")
    for size, status in ((1_500_000, "400"), (2_500_000, "413")):
        (tmp_path / "body").write_text(json.dumps({"prompt": "", "user": "x" * size}))
        # curl waits for leave before it sends so much
        shown = curl(f"{server.url}/v1/completions", *head, "--data-binary", f"@{tmp_path / 'body'}")
        assert shown.endswith(status) and "message" in shown


def test_forms_and_missing_keys_are_told(start: Start) -> None:
    server = start(api_keys=("k",))
    url = f"{server.url}/v1/completions"
    assert "application/json" in curl(url, "-d", '{"prompt": "x"}', "-H", "Authorization: Bearer k")
    assert "Bearer KEY" in curl(url, "--json", "{}")
    assert json.loads(curl(f"{server.url}/v1/models", "-H", "x-api-key: k"))["data"][0]["id"] == "tiny"
    assert "HTTP/1.1 200" in curl(f"{server.url}/health", "-I")

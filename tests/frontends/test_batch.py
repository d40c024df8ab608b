"""`understudy batch` as a command: what it says, what it prints, its exit status, and where it begins again."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.frontends.conftest import environment
from understudy.frontends import main

OPTIONS = ["--rows", "2", "--context", "128", "--memory", "1GiB"]


def asked(name: str, **body: object) -> str:
    url = "/v1/completions"
    return json.dumps({"custom_id": name, "method": "POST", "url": url, "body": {"prompt": "hello", "max_tokens": 4, **body}})


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(asked(f"r{n}") for n in range(5)))
    return path


def test_a_file_is_answered_and_not_answered_again(
    tiny: Path, requests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["batch", str(tiny), str(requests), "-o", str(tmp_path / "out.jsonl"), *OPTIONS]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert out == "" and "5 of 5 requests are left to answer, 2 together." in err
    assert "5 lines · 5 answered · 20 tokens in" in err
    with requests.open("a") as file:
        file.write("\nnonsense\n" + asked("r6", user="me") + "\n")
    assert main([*words, "--json"]) == 1
    out, err = capsys.readouterr()
    said = json.loads(out)
    assert (said["lines"], said["answered"], said["failed"], said["answered_before"]) == (7, 6, 1, 5)
    assert said["new_tokens"] == 4 and said["ignored"] == ["user"] and "change nothing here: user" in err
    records = [json.loads(text) for text in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {record["custom_id"] for record in records} == {*(f"r{n}" for n in range(5)), None, "r6"}
    assert records[0]["response"]["body"]["model"] == tiny.name
    # all is done: no model is loaded
    assert main([*words[:1], "./nowhere-at-all", *words[2:]]) == 2
    assert main([*words, "--quiet"]) == 1 and capsys.readouterr().out == ""


def test_nothing_is_done_for_requests_that_cannot_be_told_apart(
    requests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    requests.write_text(asked("a") + "\n" + asked("a"))
    for text, says in ((asked("a") + "\n" + asked("a"), "lines 1, 2"), ("\n\n", "no request")):
        requests.write_text(text)
        assert main(["batch", str(requests), "-o", str(out)]) == 2
        assert says in capsys.readouterr().err and not out.exists()
    assert main(["batch", str(requests), "-o", str(requests), "--overwrite"]) == 2
    assert "itself" in capsys.readouterr().err and requests.read_text() == "\n\n"


def test_standard_input_is_read_and_no_package_of_the_server_is_asked_for(tiny: Path, requests: Path, tmp_path: Path) -> None:
    """In a process of its own, in which those packages cannot be imported."""
    code = """
import sys
for name in ("fastapi", "starlette", "uvicorn", "prometheus_client"):
    sys.modules[name] = None
from understudy.frontends import main
sys.exit(main(sys.argv[1:]))
"""
    words = ["batch", str(tiny), "-", "-o", "out.jsonl", *OPTIONS]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], input=requests.read_text(), text=True, capture_output=True, cwd=tmp_path,
        env=environment(tmp_path, UNDERSTUDY_CACHE=os.environ["UNDERSTUDY_CACHE"]), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 5 and importlib.util.find_spec("fastapi")

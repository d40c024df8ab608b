"""`understudy serve` as a process: it serves until a signal comes, and says in one line what it cannot do."""

import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.frontends.conftest import REAL, Run, environment
from understudy.frontends import main


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_it_serves_until_it_is_told_to_end(tiny: Path, tmp_path: Path) -> None:
    port = free_port()
    words = ["serve", str(tiny), "--port", str(port), "--rows", "2", "--context", "256", "--api-key", "k"]
    process = subprocess.Popen([*REAL, *words], env=environment(tmp_path), stderr=subprocess.PIPE, text=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"x-api-key": "k"}) as client:
            # kernels may have to be compiled first
            for _ in range(2400):
                assert process.poll() is None, process.communicate()
                with suppress(httpx.TransportError):
                    if (health := client.get("/health")).status_code == 200:
                        break
                    # it listens before the model is there
                    assert health.json()["status"] == "loading"
                time.sleep(0.1)
            (card,) = client.get("/v1/models").json()["data"]
            assert card["id"] == tiny.name and card["max_model_len"] == 256
            found = client.post("/v1/completions", json={"prompt": "hello", "max_tokens": 8}).json()
            assert found["usage"]["completion_tokens"] > 0
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0 and "Traceback" not in said
    assert f"Serving {tiny.name} at http://127.0.0.1:{port}/v1: 2 requests together, 256 tokens each." in said


def test_a_port_that_is_taken_is_told_in_one_line(tiny: Path, command: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = command("serve", str(tiny), "--quiet", "--port", str(port), "--context", "128")
    assert done.returncode == 2 and f"port {port}" in done.stderr and done.stderr.count("\n") == 1


def test_what_cannot_be_served_is_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for words, says in (
        (("--port", "0"), "--port"),
        (("--port", "70000"), "70000"),
        (("--ssl-certfile", "nowhere.pem"), "--ssl-keyfile"),
        (("--ssl-certfile", "nowhere.pem", "--ssl-keyfile", "nowhere.key"), "nowhere.pem"),
        (("--max-queue", "-1"), "--max-queue"),
        (("--api-key", "", "--port", str(free_port())), "--api-key"),
        (("--allowed-host", "http://box", "--port", str(free_port())), "--allowed-host"),
        (("--allowed-origin", "box", "--port", str(free_port())), "--allowed-origin"),
    ):
        assert main(["serve", *words]) == 2
        said = capsys.readouterr().err
        assert says in said and said.count("\n") == 1, said

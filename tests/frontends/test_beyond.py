"""Replicas that cannot be are refused in one line before anything starts, and who asks for none imports no Ray."""

import importlib.util
import os
import socket
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from tests.frontends.conftest import environment
from understudy.frontends import main

INPUT = '{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a", "max_tokens": 1}}\n'


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Ray were there. It is not imported before all that these tests give is refused."""
    find = importlib.util.find_spec

    def found(name: str, *more: Any) -> ModuleSpec | None:
        return ModuleSpec(name, None) if name == "ray" else find(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", found)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a command ends with."""
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--replicas", "0"), "must be 1 or more"),
        (("--replicas", "2"), "--replicas needs --memory SIZE"),
        (("--ray-address", "auto"), "--ray-address is for --replicas"),
        (("--replica-cpus", "2"), "--replica-cpus is for --replicas"),
        (("--max-replicas", "2"), "--max-replicas is for --replicas"),
        (("--session-affinity",), "--session-affinity is for --replicas"),
        (("--replicas", "3", "--max-replicas", "2", "--memory", "1GiB"), "at least --replicas, 3, got 2"),
        (("--replicas", "2", "--memory", "1GiB", "--device", "cuda"), "needs --host-memory SIZE"),
        (("--replicas", "2", "--memory", "1MiB"), "--memory 1 MiB is too small"),
        (("--replicas", "2", "--memory", "1GiB", "--ray-address", "http://there"), "must be HOST:PORT or auto"),
    ],
)
@pytest.mark.usefixtures("installed")
def test_serve_refuses_what_replicas_cannot_do(words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in refused(capsys, "serve", "--port", "8765", *words)


@pytest.mark.usefixtures("installed")
def test_clients_are_not_let_in_without_the_certificate_that_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.pem").touch()
    file = str(tmp_path / "a.pem")
    words = ("--ssl-certfile", file, "--ssl-keyfile", file, "--ssl-ca-certs", file)
    assert "--ssl-ca-certs is not for --replicas" in refused(capsys, "serve", "--replicas", "2", "--memory", "1GiB", *words)


@pytest.mark.usefixtures("installed")
def test_batch_refuses_what_replicas_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.jsonl").write_text(INPUT)
    files = (str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"))
    for words, says in (
        (("--replicas", "2"), "--replicas is for --ray"),
        (("--ray",), "--ray needs --memory SIZE"),
        (("--ray-address", "auto"), "--ray-address is for --ray"),
    ):
        assert says in refused(capsys, "batch", *files, *words)
        assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.usefixtures("installed")
def test_a_cluster_that_is_not_there_is_told_before_ray_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray itself would try for minutes."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    said = refused(capsys, "serve", "--port", "8765", "--replicas", "2", "--memory", "1GiB", "--ray-address", f"127.0.0.1:{port}")
    assert f"No Ray cluster answers at 127.0.0.1:{port}" in said


def test_without_ray_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text(INPUT)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "ray" else find(name, *more))
    for words in (("serve", "--replicas", "2"), ("batch", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "o"), "--ray")):
        assert "pip install 'understudy[ray]'" in refused(capsys, *words)


def test_who_stays_on_one_machine_imports_no_ray(tmp_path: Path) -> None:
    """In a process in which Ray cannot be imported: a batch is answered, and what `serve` imports is there."""
    (tmp_path / "in.jsonl").write_text(INPUT)
    program = (
        "import sys; sys.modules['ray'] = None; sys.modules['pyarrow'] = None; import understudy.server.listen; "
        "import understudy.async_llm; from understudy.frontends import main; sys.exit(main(sys.argv[1:]))"
    )
    words = ["batch", "demo", "in.jsonl", "-o", "out.jsonl", "--context", "128", "--rows", "1"]
    own = environment(tmp_path, UNDERSTUDY_CACHE=os.environ["UNDERSTUDY_CACHE"])
    command = [sys.executable, "-c", program, *words]
    done = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.jsonl").read_text().count("\n") == 1

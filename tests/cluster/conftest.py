"""A command that uses Ray, in a process of its own whose cluster ends with it; and the texts that the model gives without Ray."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.frontends.conftest import REAL, environment
from understudy import LLM

# Seconds that anything may take on a machine that others use too.
PATIENCE = 400
OPTIONS = ("--memory", "1GiB", "--rows", "4", "--context", "512")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = importlib.util.find_spec("ray") is None
    for item in items:
        if item.get_closest_marker("ray") and missing:
            item.add_marker(pytest.mark.skip(reason="Ray is not installed: pip install 'understudy[ray]'"))


def until(true: Callable[[], Any], what: str) -> Any:
    """Wait for something to be true, and return it."""
    end = time.monotonic() + PATIENCE
    while not (found := true()):
        assert time.monotonic() < end, f"it did not happen in time: {what}"
        time.sleep(0.05)
    return found


class Command:
    """`understudy` with `words`, under way."""

    def __init__(self, tmp_path: Path, *words: str):
        # Ray's sockets lie below the folder for temporary files, and a socket's path must be short.
        self.folder = tempfile.TemporaryDirectory(prefix="ray", dir="/tmp")
        self.said = tmp_path / "said.txt"
        own = environment(tmp_path, RAY_TMPDIR=self.folder.name, UNDERSTUDY_CACHE=os.environ["UNDERSTUDY_CACHE"])
        with self.said.open("wb") as said:
            self.process = subprocess.Popen([*REAL, *words], env=own, cwd=tmp_path, stdout=said, stderr=said)

    def replicas(self) -> list[psutil.Process]:
        """The processes that hold a model each."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            # One that ended meanwhile is none.
            with suppress(psutil.Error):
                if "".join(child.cmdline()[:1]).startswith(("ray::ServeReplica", "ray::MapWorker")):
                    found.append(child)
        return found

    def alive(self) -> None:
        assert self.process.poll() is None, self.said.read_text()

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        if self.process.poll() is None:
            children = psutil.Process(self.process.pid).children(recursive=True)
            for process in (self.process, *children):
                process.kill()
            self.process.wait(PATIENCE)
        self.folder.cleanup()


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Starts commands, and ends them with the test."""
    begun: list[Command] = []

    def start(*words: str) -> Command:
        begun.append(Command(tmp_path, *words))
        return begun[-1]

    yield start
    for command in begun:
        command.close()


@pytest.fixture(scope="session")
def demo() -> Iterator[LLM]:
    """The built-in model, without Ray. It is prepared here, so that no replica has to."""
    with LLM(rows=4, context=512) as llm:
        yield llm

"""Commands run in a process of their own: on the fake LLM (`understudy`) or for real (`command`)."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAKE = [sys.executable, str(Path(__file__).with_name("fake.py"))]
REAL = [sys.executable, "-m", "understudy"]

Run = Callable[..., subprocess.CompletedProcess[str]]


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    """The caller's, with this source tree, an empty cache of its own, and one thread."""
    own = {"PYTHONPATH": str(ROOT / "src"), "UNDERSTUDY_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    return {**os.environ, "HF_HUB_OFFLINE": "1", **own, **more}


def hearing() -> None:
    """In a new process: it hears Ctrl-C, which a shell lets what it starts in the background ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def runner(program: list[str], tmp_path: Path) -> Run:
    def run(*words: str, stdin: str | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        given = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
        return subprocess.run(
            [*program, *words],
            capture_output=True,
            text=True,
            errors="surrogateescape",
            env=environment(tmp_path, **more),
            cwd=tmp_path,
            timeout=120,
            check=False,
            **given,
        )

    return run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random checkpoint: real enough to prepare, plan and run."""
    import torch

    from tests.tiny import save

    directory = tmp_path_factory.mktemp("tiny")
    save(directory, "llama-tied", torch.bfloat16, max_position_embeddings=2048)
    return directory


@pytest.fixture
def understudy(tmp_path: Path) -> Run:
    return runner(FAKE, tmp_path)


@pytest.fixture
def command(tmp_path: Path) -> Run:
    return runner(REAL, tmp_path)

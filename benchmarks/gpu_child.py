"""Processes of `gpu_check`: each does one piece of work and sends what it finds, as it finds it.

They are forked from a server that has imported torch and transformers and touched nothing of the GPU, so each begins at once, with
GPU memory of its own. What they print goes to a file, whose last line says why one failed."""

import ctypes
import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = tuple(map(str, (ROOT, ROOT / "src", ROOT / "benchmarks")))
IMPORTED = ["torch", "transformers", "transformers.models.llama.modeling_llama", "understudy", "understudy.models.model"]
DIE_WITH_PARENT = 1
# Sends what was found.
Send = Callable[..., None]


def prepare_path(fake: bool) -> None:
    """Nothing need be installed: the package and its tests' helpers are imported from where they lie."""
    for folder in FOLDERS:
        if folder not in sys.path:
            sys.path.insert(0, folder)
    before = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part and part not in FOLDERS]
    os.environ["PYTHONPATH"] = os.pathsep.join([*FOLDERS, *before])
    # to be asked whether there is a GPU must not open it: what is forked later could not
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    if fake:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported


@dataclass(frozen=True)
class Child:
    """A process that was begun. `said` is the file that it prints to."""

    process: Any
    news: Any
    said: Path

    @classmethod
    def begin(cls, start: str, work: Callable[..., None], said: Path, fake: bool, *given: Any) -> "Child":
        """Run `work(send, *given)` in a process of its own; `start`: how `multiprocessing` begins it."""
        context: Any = multiprocessing.get_context(start)
        if start == "forkserver":
            context.set_forkserver_preload(IMPORTED)
        news, sent = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(work, sent, str(said), fake, dict(os.environ), given), daemon=True)
        process.start()
        sent.close()
        return cls(process, news, said)

    def messages(self, seconds: float, end: float = math.inf) -> Iterator[Any]:
        """What it sends, until it ends, nothing came for `seconds`, or the monotonic clock is at `end`; `failure` tells which."""
        latest = time.monotonic()
        while (left := min(latest + seconds, end) - time.monotonic()) > 0:
            if not self.news.poll(left):
                continue
            try:
                message = self.news.recv()
            except EOFError:
                self.process.join(timeout=10)
                return
            yield message
            latest = time.monotonic()

    def ready(self) -> list[Any]:
        """What it has sent so far and nobody took."""
        found = []
        try:
            while self.news.poll():
                found.append(self.news.recv())
        except EOFError:
            pass
        return found

    @property
    def running(self) -> bool:
        return bool(self.process.is_alive())

    def failure(self) -> str:
        """Why it did not do all its work, in one line; empty: it did."""
        if self.running:
            return "it was not done in time"
        if not self.process.exitcode:
            return ""
        lines = [line for line in self.said.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"it ended without a word (status {self.process.exitcode})"

    def end(self) -> None:
        """End it now, whatever it is at."""
        if self.running:
            self.process.kill()
        self.process.join()
        self.news.close()


def _run(work: Callable[..., None], sent: Any, said: str, fake: bool, environment: dict[str, str], given: tuple[Any, ...]) -> None:
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    with Path(said).open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    prepare_path(fake)
    # Locks that libraries make (progress bars do) are this process's own then: nobody is left to give them back when it ends.
    multiprocessing.set_start_method("fork", force=True)
    if fake:
        from understudy.devices import DEVICES

        DEVICES["fake"] = "tests.fake_device:open_fake"
    work(lambda *message: sent.send(message), *given)
    sys.stdout.flush()
    sys.stderr.flush()
    # Now: what a library left behind must neither wait nor fail.
    os._exit(0)

"""What every measurement does first: memory is counted anew, and the page cache forgets the model's files."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...params import SamplingParams
from ..live import Live, Progress

if TYPE_CHECKING:
    from ...llm import LLM

# A text that is continued before anything is measured.
WARM_UP = "import warnings\n"
CLEAR_REFS = Path("/proc/self/clear_refs")


@contextmanager
def measured_model(model: str | None, what: str, params: SamplingParams, live: Live, **options: Any) -> Iterator["LLM"]:
    """A model loaded anew, warmed up on another text by `params`, its files out of the page cache. `what`: how it is called.

    options: keywords of LLM."""
    from ...llm import LLM

    forget_peak_memory()
    with LLM(model, progress=Progress(live), **options) as llm:
        live.draw(f"{what} · warming up")
        llm.generate(WARM_UP, replace(params, max_new_tokens=2))
        drop_page_cache(llm.store.path)
        yield llm


def forget_peak_memory() -> None:
    """Let the kernel count this process's peak memory anew, so that each row has its own (if the kernel refuses, it only grows)."""
    if os.access(CLEAR_REFS, os.W_OK):
        CLEAR_REFS.write_text("5")


def drop_page_cache(folder: Path) -> None:
    """Ask the kernel to forget these files, so that the slow tier is really read. Nothing is deleted."""
    for path in _files(folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _files(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())

"""`LLM` as commands get it, and all that stands on it: imported when it is needed, in the least time."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from .. import startup

if TYPE_CHECKING:
    from ..llm import LLM


def llm() -> "type[LLM]":
    """The class `LLM`. For commands that do nothing but run models, see `startup`.

    Raises UsageError where memory does not hold what is imported."""
    with lean():
        from ..llm import LLM
    return LLM


@contextmanager
def lean() -> Iterator[None]:
    """Inside, what runs models is imported in the least time, as for `llm`."""
    with ExitStack() as stack:
        if startup.owned():
            # What they import takes time that `--help` need not.
            from ..library_lists import kept_lists
            from ..plan.demand import IMPORTED
            from ..plan.machine import check_spare
            from ..plan.remembered import cache_directory

            check_spare(IMPORTED, "What runs a model")
            stack.enter_context(kept_lists(cache_directory(os.environ)))
        stack.enter_context(startup.lean())
        yield

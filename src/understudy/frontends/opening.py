"""`LLM` as commands get it: imported when it is needed, in the least time."""

from typing import TYPE_CHECKING

from .. import startup

if TYPE_CHECKING:
    from ..llm import LLM


def llm() -> "type[LLM]":
    """The class `LLM`. For commands that do nothing but run models, see `startup`.

    Raises UsageError where memory does not hold what is imported."""
    if startup.owned():
        # What they import takes time that `--help` need not.
        from ..plan.demand import IMPORTED
        from ..plan.machine import check_spare

        check_spare(IMPORTED, "What runs a model")
    with startup.lean():
        from ..llm import LLM
    return LLM

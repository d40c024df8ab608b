"""`LLM` as commands get it: imported when it is needed, in the least time."""

from typing import TYPE_CHECKING

from .. import startup

if TYPE_CHECKING:
    from ..llm import LLM


def llm() -> "type[LLM]":
    """The class `LLM`. For commands that do nothing but run models, see `startup`."""
    with startup.lean():
        from ..llm import LLM
    return LLM

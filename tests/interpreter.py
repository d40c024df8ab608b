"""Triton's interpreter, made quicker: it puts its own functions in the place of Triton's anew whenever a kernel calls a function,
which takes longer than what the function does."""

import inspect
from typing import Any

# Modules whose functions are the interpreter's now.
PATCHED: set[str] = set()


def quicken() -> None:
    """From now on a module is patched once for each kernel that runs. Nothing, where Triton is not installed."""
    try:
        import triton.language as tl
        from triton.runtime import interpreter
    except ImportError:
        return
    patch = interpreter._patch_lang
    if patch.__name__ == "patched":
        return

    def patched(function: Any) -> Any:
        modules = {value.__name__ for value in function.__globals__.values() if inspect.ismodule(value) and value in (tl, tl.core)}
        if modules <= PATCHED:
            return interpreter._LangPatchScope()
        scope, fresh = patch(function), modules - PATCHED
        PATCHED.update(fresh)
        restore = scope.restore

        def restored() -> None:
            restore()
            PATCHED.difference_update(fresh)

        scope.restore = restored
        return scope

    interpreter._patch_lang = patched

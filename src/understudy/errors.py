"""Errors, each one line that says what went wrong and what to do next. Front ends print the message and exit with `exit_status`."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType


def first_line(error: BaseException) -> str:
    """The first line of another library's error message, or the error's class name if the message is empty."""
    lines = str(error).strip().splitlines()
    said = lines[0].rstrip(".: ") if lines else ""
    return said or type(error).__name__


# What another library raises when a file or a template is not as it expects.
FOREIGN = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)


@contextmanager
def quoted(kind: type["UnderstudyError"], what: str, advice: str, *more: type[BaseException]) -> Iterator[None]:
    """Errors that another library raises inside become one of `kind`: `what`, the library's own words, `advice`.

    Errors of this package pass, and so do those that are neither in FOREIGN nor in `more`: they are bugs."""
    try:
        yield
    except UnderstudyError:
        raise
    except BaseException as error:
        # The library `tokenizers` raises bare Exceptions, and panics where it meets what it did not expect.
        bare = type(error) is Exception or type(error).__name__ == "PanicException"
        if not bare and not isinstance(error, (*FOREIGN, *more)):
            raise
        raise kind(f"{what}: {first_line(error)}. {advice}") from None


class Caught(AbstractContextManager["Caught"]):
    """Keeps the error that its block raises, so that it ends one request and not what goes on beside it. Interrupts pass.

    What is caught is for whoever asked for the work: it must be told, or logged, never dropped."""

    def __init__(self) -> None:
        # None: nothing was raised.
        self.error: Exception | None = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        self.error = error if isinstance(error, Exception) else None
        return self.error is not None


class UnderstudyError(Exception):
    """Something could not be done (exit status 1)."""

    exit_status = 1


class UsageError(UnderstudyError):
    """A mistake the user can mend: an unknown option, a wrong value (exit status 2)."""

    exit_status = 2


class RoomError(UsageError):
    """A text that does not fit, with its reply, in the context or in the memory that is free. `code`: a word for programs."""

    def __init__(self, message: str, code: str = "context_length_exceeded"):
        super().__init__(message)
        self.code = code


class CheckpointError(UnderstudyError):
    """The source model cannot be read: missing, truncated, gated, or of an unsupported kind."""


class StoreError(UnderstudyError):
    """The prepared model cannot be read or written."""


class RequestError(UnderstudyError):
    """A text cannot go on. Its request ends; others go on."""


class NumbersError(RequestError):
    """A model computed what is no number (NaN or infinity)."""


class GrammarError(RequestError):
    """No token of the model may follow, by the grammar that a text must fit."""


class KernelError(UnderstudyError):
    """A kernel of our own cannot be compiled or started on this device; what it was to do has not been done."""


class TransferError(UnderstudyError):
    """Weights did not arrive. Generation stops; wrong bytes never become text."""

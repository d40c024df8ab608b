"""Every error is one line; what another library raises is quoted, and a bug stays a bug."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy import errors
from understudy.errors import (
    FOREIGN,
    Caught,
    CheckpointError,
    StoreError,
    UnderstudyError,
    UsageError,
    first_line,
    quoted,
)

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, UnderstudyError)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_an_exit_status(kind: type[UnderstudyError]) -> None:
    assert kind.exit_status == (2 if issubclass(kind, UsageError) else 1)
    assert kind.__doc__


@given(st.text())
def test_what_an_error_says_is_one_line_that_is_not_empty(text: str) -> None:
    said = first_line(ValueError(text))
    assert len(said.splitlines()) == 1 and said == said.rstrip(".: ")
    assert said == "ValueError" or said in text


@pytest.mark.parametrize("text", ["", "  \n", "...", ". .\nmore"])
def test_an_error_that_says_nothing_is_called_by_its_kind(text: str) -> None:
    assert first_line(ValueError(text)) == "ValueError"


@pytest.mark.parametrize("kind", [*FOREIGN, Exception, type("PanicException", (BaseException,), {})])
def test_what_another_library_raises_is_quoted(kind: type[BaseException]) -> None:
    with pytest.raises(CheckpointError) as told, quoted(CheckpointError, "The file is odd", "Choose another."):
        raise kind("no such thing.\nmore lines")
    said = str(told.value)
    assert said.startswith("The file is odd: ") and said.endswith("no such thing. Choose another.")
    assert told.value.__cause__ is None and told.value.__suppress_context__


class Bug(Exception):
    """An error of nobody's making."""


@pytest.mark.parametrize("error", [StoreError("known"), Bug("bug"), KeyboardInterrupt(), SystemExit(3)])
def test_our_own_errors_bugs_and_interrupts_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as passed, quoted(CheckpointError, "What", "Advice."):
        raise error
    assert passed.value is error


def test_more_kinds_may_be_quoted() -> None:
    with pytest.raises(CheckpointError, match=r"^What: bug\. Advice\.$"), quoted(CheckpointError, "What", "Advice.", Bug):
        raise Bug("bug")


def test_an_error_that_is_caught_is_kept_and_interrupts_pass() -> None:
    with Caught() as nothing:
        pass
    assert nothing.error is None
    error = Bug("bug")
    with Caught() as caught:
        raise error
    assert caught.error is error
    for interrupt in (KeyboardInterrupt, SystemExit):
        with pytest.raises(interrupt), Caught():
            raise interrupt

"""Cells of the table of plans say in a few words what is given up."""

import pytest

from plans import said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("", ""),
        ("--method none --codec raw", "none"),
        ("--bits 2", "2 bits"),
        ("--spill 1024", "spill"),
        ("--spill 1024 --bits mixed:bits=3.5", "spill, 3.5 bits"),
        ("--spill 1024 --method none --codec raw", "spill, none"),
        ("--bits 5", "--bits 5"),
    ],
)
def test_what_is_given_up_is_said_in_a_few_words(options: str, words: str) -> None:
    assert said(options) == words

"""Sizes as people write them, and one line with examples for what is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.errors import UsageError
from understudy.plan.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("8GiB", 8 << 30),
        ("8G", 8 << 30),
        ("8 gib", 8 << 30),
        ("3.5GB", 3_500_000_000),
        ("500MB", 500_000_000),
        ("64kib", 65536),
        ("1TB", 10**12),
        ("17", 17),
        (17, 17),
        ("12B", 12),
        (".5k", 512),
    ],
)
def test_what_people_write(text: str | int, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "much", "-1", "8 GiBs", "1e9", "8,5GB", "GiB", "nan", "8GiB 2"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match=r"--memory .* Write it like 8GiB, 3.5GB"):
        parse_size(text, "--memory")


@given(st.integers(0, 1 << 50))
def test_what_is_written_reads_back_nearly_the_same(nbytes: int) -> None:
    assert parse_size(format_size(nbytes)) == pytest.approx(nbytes, rel=0.06)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1 << 30, "1 GiB"), (1.5 * (1 << 30), "1.5 GiB"), (37 << 20, "37 MiB")],
)
def test_what_is_shown(nbytes: int, text: str) -> None:
    assert format_size(nbytes) == text

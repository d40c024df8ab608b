"""Records of measured heads: whole or not there, and of one question."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from understudy.errors import UnderstudyError, UsageError
from understudy.scaling.cells import Accepted, Cell, Records, grid

QUESTION = {"model": "demo", "kind": "eagle", "seed": 3, "options": [1, 2]}


def found(cell: Cell, tokens: float = 2.5) -> Accepted:
    return Accepted(cell, f"heads/{cell.name}", tokens, (0.7, 0.5), 1000, 12.5)


def test_a_run_goes_on_with_the_cells_that_have_no_record(tmp_path: Path) -> None:
    cells = grid("eagle", [2, 1], [500, 100])
    assert [(cell.tokens, cell.depth) for cell in cells] == [(100, 1), (100, 2), (500, 1), (500, 2)]
    for done in range(len(cells)):
        records = Records.open(tmp_path, QUESTION)
        assert list(records.left(cells)) == cells[done:]
        records.keep_accepted(found(cells[done]))
    again = Records.open(tmp_path, QUESTION)
    assert not list(again.left(cells)) and [again.accepted(cell) for cell in cells] == [found(cell) for cell in cells]


def test_heads_are_compared_on_the_same_texts() -> None:
    cells = grid("eagle", [1, 2], [9])
    one, two = (replace(found(cell, 1.5 + 0.5 * cell.depth), by_text=((4 * cell.depth, 8), (4, 8))) for cell in cells)
    more, error = two.over(one)
    assert more == 0.5 and error == pytest.approx(0.25) and one.error == 0.0 and two.error == pytest.approx(0.25)
    assert two.over(replace(one, by_text=((4, 8),)))[1] is None and found(one.cell).error is None


def test_a_record_from_before_texts_were_told_apart_is_read(tmp_path: Path) -> None:
    [cell] = grid("eagle", [1], [100])
    records = Records.open(tmp_path, QUESTION)
    record = asdict(found(cell))
    del record["by_text"]
    records.keep(cell.name, record)
    assert records.accepted(cell) == found(cell)


def test_what_a_killed_run_left_half_written_is_no_record(tmp_path: Path) -> None:
    [cell] = grid("eagle", [1], [100])
    records = Records.open(tmp_path, QUESTION)
    (tmp_path / "cells" / f"{cell.name}.partial").write_text("{")
    assert records.accepted(cell) is None


@pytest.mark.parametrize("name", list(QUESTION))
def test_answers_to_another_question_are_not_mixed_in(tmp_path: Path, name: str) -> None:
    Records.open(tmp_path, QUESTION)
    with pytest.raises(UsageError, match=f"with {name} .*choose another directory"):
        Records.open(tmp_path, {**QUESTION, name: "other"})


@pytest.mark.parametrize("text", ["{", "[]", "{}", json.dumps({"cell": {"kind": "eagle"}, "positions": []})])
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    [cell] = grid("eagle", [1], [100])
    records = Records.open(tmp_path, QUESTION)
    (tmp_path / "cells" / f"{cell.name}.json").write_text(text)
    with pytest.raises(UnderstudyError, match=f"{cell.name}.json .*delete it"):
        records.accepted(cell)


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnderstudyError, match=r"Cannot write to .*file/here"):
        Records.open(tmp_path / "file" / "here", QUESTION)

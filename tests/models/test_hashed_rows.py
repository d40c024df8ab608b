"""Rows of tables that are looked up by a hash: from files, in pieces, the latest kept."""

import os
from pathlib import Path

import pytest
import torch

from understudy.errors import TransferError
from understudy.models.hashed_rows import FileRows, HashedTable, TableRows
from understudy.weights.entries import Stored

ROWS = (5, 1, 30)


@pytest.fixture
def pieces(tmp_path: Path) -> tuple[list[tuple[Path, Stored]], torch.Tensor]:
    """A table in pieces, in two files, and what it holds."""
    table, found, first = torch.randn(sum(ROWS), 4).to(torch.bfloat16), [], 0
    for number, count in enumerate(ROWS):
        path = tmp_path / f"file{number // 2}"
        own = table[first : first + count]
        with path.open("ab") as file:
            offset = file.tell()
            file.write(own.view(torch.uint8).numpy().tobytes())
        found.append((path, Stored(path.name, offset, own.nbytes, own.dtype, tuple(own.shape), "")))
        first += count
    return found, table


@pytest.mark.parametrize("room", [0, 1 << 20])
def test_rows_are_those_of_the_whole_table(room: int, pieces: tuple[list[tuple[Path, Stored]], torch.Tensor]) -> None:
    places, table = pieces
    rows = FileRows(places, room)
    for wanted in ([0, 4, 5, 6, 35, 4], [35], list(range(36)), [6, 6, 5]):
        assert torch.equal(rows(torch.tensor(wanted)), table[wanted])
        assert torch.equal(TableRows(table)(torch.tensor(wanted)), table[wanted])
    rows.close()


def test_the_latest_rows_are_kept(pieces: tuple[list[tuple[Path, Stored]], torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    places, table = pieces
    rows, reads, pread = FileRows(places, 0), [], os.pread
    rows.keep = 3
    monkeypatch.setattr(os, "pread", lambda *given: reads.append(given) or pread(*given))
    for wanted, read in (([1, 2, 1], 2), ([2, 1], 0), ([7, 8], 2), ([1], 0), ([2], 1), ([9, 10, 11, 12], 4)):
        before = len(reads)
        assert torch.equal(rows(torch.tensor(wanted)), table[wanted]) and len(reads) - before == read
    assert len(rows.kept) == 3
    rows.close()


def test_a_table_that_ends_too_early_is_an_error_that_names_the_row(
    pieces: tuple[list[tuple[Path, Stored]], torch.Tensor],
) -> None:
    places, _ = pieces
    path = places[-1][0]
    path.write_bytes(path.read_bytes()[:-4])
    rows = FileRows(places, 0)
    rows(torch.tensor([34]))
    with pytest.raises(TransferError, match="row 35 of a table lacks 4 bytes"):
        rows(torch.tensor([35]))
    rows.close()


def test_a_module_gives_the_rows_of_the_last_token_of_each_node() -> None:
    weight = torch.randn(9, 4)
    table = HashedTable.of(torch.nn.Embedding(9, 4))
    assert table.weight.is_meta and table.weight.shape == (9, 4)
    table.rows = TableRows(weight)
    places = torch.randint(0, 9, (5, 3, 2))
    assert torch.equal(table(places), weight[places[:, -1:]])

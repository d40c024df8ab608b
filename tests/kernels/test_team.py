"""A team of threads takes every piece of work once, however many threads there are."""

import ctypes
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from numba.np import numpy_support

from understudy.kernels import team
from understudy.kernels.compiled import machine_code
from understudy.kernels.team import take, uint32_at

PIECES = 5000
carray: Any = numpy_support.carray


def _work(argument: Any) -> None:
    """Add 1 to the mark of each piece taken. Ends, also where pieces are given out twice."""
    words = carray(uint32_at(argument), 2 + 5000)
    for _ in range(5001):
        piece = take(argument)
        if piece >= 5000:
            break
        words[2 + piece] += 1


class Pieces(ctypes.Structure):
    """The counter, and a mark for each piece."""

    _fields_ = (("taken", ctypes.c_int64), ("marks", ctypes.c_uint32 * PIECES))


@pytest.fixture(params=[1, 2, 4])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("small", [True, False])
def test_every_piece_is_taken_once(threads: int, small: bool) -> None:
    pieces, address = Pieces(), machine_code(_work)
    team.run(address, pieces, small)
    assert set(pieces.marks) == {1}
    askers = threads if team.parallel() and not small else 1
    assert pieces.taken == PIECES + askers, "everybody asks once more, and is told that nothing is left"


def test_without_torchs_threads_one_does_it_all_and_a_note_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (team.note() == "") == bool(team.parallel())
    monkeypatch.setattr(team, "parallel", lambda: 0)
    pieces = Pieces()
    team.run(machine_code(_work), pieces)
    assert set(pieces.marks) == {1} and pieces.taken == PIECES + 1
    assert "one thread" in team.note()


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.skipif(not team.parallel(), reason="torch's threads were not found")
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="/proc does not tell threads")
def test_a_disbanded_team_has_no_threads_and_works_again(threads: int) -> None:
    address, before = machine_code(_work), _threads()
    for _ in range(2):
        pieces = Pieces()
        team.run(address, pieces)
        assert set(pieces.marks) == {1}
        assert team.disband()
    assert _threads() <= before


def test_a_library_that_keeps_its_threads_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "_entry", lambda name: 0)
    assert not team.disband()


@pytest.mark.parametrize("kernels", [1, 3])
def test_threads_are_given_for_a_while_to_one_thread_of_the_process(kernels: int) -> None:
    pieces, address, before = Pieces(), machine_code(_work), torch.get_num_threads()
    seen: list[int] = []
    with team.shared_by(kernels, 2):
        team.run(address, pieces)
        assert torch.get_num_threads() == 2
        other = threading.Thread(target=lambda: seen.append(team.threads()))
        other.start()
        other.join()
        with team.shared_by(2, 1):
            assert (team.threads(), torch.get_num_threads()) == (2, 1)
        assert (team.threads(), torch.get_num_threads()) == (kernels, 2)
    assert pieces.taken == PIECES + (kernels if team.parallel() else 1)
    assert torch.get_num_threads() == before == team.threads()
    assert kernels not in seen or kernels == before


def test_without_openmp_torch_is_told_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(team, "_entry", lambda name: 0)
    with team.shared_by(1, before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before

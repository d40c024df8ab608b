"""A kernel reads from a structure what Python wrote there, field by field, nested ones too."""

import ctypes
from collections.abc import Iterator
from typing import Any

import numba
import pytest

from understudy.kernels.descriptor import DecodeRun, ExactOperand, ExactRun, ResidualBlocks, reader, rooms
from understudy.kernels.draft_descriptors import DraftRun, LevelRun


def names_of(kind: type[ctypes.Structure], before: str = "") -> Iterator[str]:
    """The path of each number, as in `matrix.codes`, in the order in which they lie."""
    for name, field in ((entry[0], entry[1]) for entry in kind._fields_):
        if issubclass(field, ctypes.Structure):
            yield from names_of(field, f"{before}{name}.")
        else:
            assert field is ctypes.c_int64, f"{kind.__name__}.{name} is no int64"
            yield before + name


def put(structure: Any, path: str, value: int) -> None:
    *outer, last = path.split(".")
    for name in outer:
        structure = getattr(structure, name)
    setattr(structure, last, value)


@pytest.mark.parametrize("kind", [DecodeRun, DraftRun, ExactOperand, ExactRun, LevelRun, ResidualBlocks])
def test_a_kernel_reads_what_was_written(kind: type[ctypes.Structure]) -> None:
    names = list(names_of(kind))
    # two of them, to see that the second one begins where the first one ends
    structures = (kind * 2)()
    for i, path in enumerate(names):
        put(structures[1], path, (1 << 40) + i * i)
    reads = ", ".join(f"here.{path}" for path in names)
    scope: dict[str, Any] = {"read": reader(kind)}
    exec(f"def kernel(address):\n    here = read(address)\n    return ({reads},)", scope)
    found = numba.njit(scope["kernel"])(ctypes.addressof(structures) + ctypes.sizeof(kind))
    assert list(found) == [(1 << 40) + i * i for i in range(len(names))]
    assert ctypes.sizeof(kind) == 8 * len(names)


@pytest.mark.parametrize("kind", [DecodeRun, DraftRun, ExactRun])
def test_a_run_begins_with_its_counter(kind: type[ctypes.Structure]) -> None:
    """`team.take` adds to the number at a run's own address."""
    assert next(names_of(kind)) == "taken"


def test_a_name_that_is_no_field_is_refused() -> None:
    with pytest.raises(AttributeError):
        DraftRun(column=3)


def test_rooms_lie_apart_and_hold_what_was_asked_for() -> None:
    kept, (first, second, empty, last) = rooms([3, 128, 0, 64])
    assert [second - first, empty - second, last - empty] == [64, 128, 0]
    assert first == kept.data_ptr() and last + 64 == first + kept.nbytes

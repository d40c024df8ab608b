"""Decoder blocks of a draft that follow each other, all of a level in one call: between two kernels of a small model the host would
take longer than they do.

The runs of all blocks are described once for each number of nodes, as one table of numbers; a level copies it and fills in its own
addresses. Each run is the one that `draft_product.Joined` and `draft_layer.attend` make, so bits stay the same."""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..layer_states import FullState
from ..tree import Nodes
from . import draft_layer, team
from .compiled import machine_code
from .descriptor import NUMBER, Descriptor, reader
from .draft_descriptors import DraftRun, LevelRun
from .draft_product import Joined, entries
from .head_form import HeadForm

# a joined product of some device
P = TypeVar("P")
# where the five runs of a block begin in its line of the table, in numbers: products of queries, keys and values; attention;
# output; both halves of the MLP; the way back
SIZES = [len(kind._fields_) for kind in (DraftRun, LevelRun, DraftRun, DraftRun, DraftRun)]
MADE, ATTENDED, OUTPUT, GATED, DOWN = (sum(SIZES[:i]) for i in range(5))
LINE_BYTES, DRAFT_BYTES, LEVEL_BYTES = 8 * sum(SIZES), 8 * SIZES[0], 8 * SIZES[1]
# what one level has of its own, in all blocks
OWN = ("cosines", "sines", "rows", "slots", "positions", "prefix", "tail", "beyond", "longest")
# bytes by which rooms are apart
APART = 64


class BlockParts(NamedTuple, Generic[P]):
    """What one block is made of, in the order in which it runs: products of queries, keys and values, how it attends, the product
    of its output, both halves of the MLP, and the product after them."""

    made: P
    heads: HeadForm
    output: P
    gated: P
    down: P


class ChainRun(Descriptor):
    """Blocks of a level, one after the other."""

    __slots__ = ()
    _fields_ = (
        ("taken", NUMBER),
        ("blocks", NUMBER),
        # address of the runs: a line of LINE_BYTES for each block
        ("runs", NUMBER),
        # addresses of machine code: what leads a product, and what attends
        ("lead", NUMBER),
        ("attend", NUMBER),
        # address of GOMP_parallel (0: there is none), and how many threads attend
        ("parallel", NUMBER),
        ("threads", NUMBER),
    )


chain_run = reader(ChainRun)


class LevelChain:
    """Runs `parts`, each of which is given what the one before it gave."""

    def __init__(self, parts: Sequence[BlockParts[Joined]]) -> None:
        self.parts = parts
        # By what they depend on: the table for a number of nodes, and the bytes of room that a level needs.
        self._tables: dict[tuple[object, ...], tuple[NDArray[np.int64], int]] = {}

    def __call__(self, hidden: Tensor, turns: tuple[Tensor, Tensor], states: Sequence[FullState], nodes: Nodes) -> Tensor:
        """hidden [1, n, hidden size] -> the same shape. `turns`: as in `draft_layer.attend`, which see; `states`: of each part."""
        given = hidden.contiguous()
        made = (self.parts[0].made.outputs, given.itemsize)
        run, kept = draft_layer.described(*made, turns, states[0], nodes, self.parts[0].heads)
        threads = team.threads()
        lie = [(state.keys.data_ptr(), state.values.data_ptr(), state.keys.stride()) for state in states]
        key = (len(nodes), given.dtype, threads, *lie)
        if key not in self._tables:
            self._forget(lie)
            self._tables[key] = self._described(given, turns, states, nodes)
        table, size = self._tables[key]
        lines = table.copy()
        room, out = torch.empty(size, dtype=torch.uint8), torch.empty_like(given)
        lines[:, _OWN] = _line(run)[_OWN_OF_RUN]
        lines[:, _ROOM] += room.data_ptr()
        lines[:, _BETWEEN] = out.data_ptr()
        lines[0, _BETWEEN[:2]] = given.data_ptr()
        chain = ChainRun(
            blocks=len(lines), runs=lines.ctypes.data, lead=entries()[0], attend=draft_layer.entry(), parallel=team.parallel(),
            threads=1 if draft_layer.is_small(run) else threads,
        )  # fmt: skip
        lead()(ctypes.addressof(chain))
        del kept
        return out

    def _forget(self, lie: Sequence[object]) -> None:
        """Drop the tables for keys and values that lie elsewhere than where they `lie` now."""
        self._tables = {key: table for key, table in self._tables.items() if list(key[3:]) == list(lie)}

    def _described(
        self, given: Tensor, turns: tuple[Tensor, Tensor], states: Sequence[FullState], nodes: Nodes
    ) -> tuple[NDArray[np.int64], int]:
        """The runs of all parts [parts, numbers of a line], with places in the room of a level where addresses will be, and how
        large that room is."""
        count, item = len(nodes), given.itemsize
        places, size = [], 0
        for products in zip(*[(part.made, part.output, part.gated) for part in self.parts], strict=True):
            places.append(size)
            size += _apart(count * max(product.outputs for product in products) * item)
        made, mid, gated = places
        attended, size = size, size + _apart(count * max(part.output.columns for part in self.parts) * item)
        room = max(product.room(count) for part in self.parts for product in (part.made, part.output, part.gated, part.down))
        lines = []
        for part, state in zip(self.parts, states, strict=True):
            runs: list[Any] = [part.made.described(count, item)]
            runs.append(draft_layer.described(part.made.outputs, item, turns, state, nodes, part.heads)[0])
            runs += [product.described(count, item) for product in (part.output, part.gated, part.down)]
            first, attend, output, gate, down = runs
            first.y = attend.made = made
            attend.out = output.x = attended
            output.y = gate.x = down.added = mid
            gate.y = down.x = gated
            for product in (first, output, gate, down):
                product.scratch = size
            lines.append(np.concatenate([_line(run) for run in runs]))
        return np.stack(lines), size + room


def _apart(size: int) -> int:
    return -(-size // APART) * APART


def _line(run: Descriptor) -> NDArray[np.int64]:
    """The numbers of `run`; nothing is copied."""
    return np.frombuffer(memoryview(run), np.int64)


def _numbers(start: int, kind: type[Descriptor], names: Sequence[str]) -> list[int]:
    """The numbers of these fields of the run that begins at `start` in a line."""
    fields = [name for name, *_ in kind._fields_]
    return [start + fields.index(name) for name in names]


_OWN_OF_RUN, _OWN = _numbers(0, LevelRun, OWN), _numbers(ATTENDED, LevelRun, OWN)
# addresses in the room of a level
_ROOM = [
    *_numbers(MADE, DraftRun, ("y", "scratch")),
    *_numbers(ATTENDED, LevelRun, ("made", "out")),
    *_numbers(OUTPUT, DraftRun, ("x", "y", "scratch")),
    *_numbers(GATED, DraftRun, ("x", "y", "scratch")),
    *_numbers(DOWN, DraftRun, ("x", "added", "scratch")),
]
# of what goes from block to block: read, added to, and written
_BETWEEN = [*_numbers(MADE, DraftRun, ("x",)), *_numbers(OUTPUT, DraftRun, ("added",)), *_numbers(DOWN, DraftRun, ("y",))]


@cache
def lead() -> Callable[[int], None]:
    """What runs all blocks of a `ChainRun`, to be called with its address."""
    return ctypes.CFUNCTYPE(None, ctypes.c_int64)(machine_code(_through))


def _through(argument: Any) -> None:
    """Run all blocks, in order."""
    run = chain_run(argument)
    for block in range(run.blocks):
        place = run.runs + block * LINE_BYTES
        team.call(run.lead, place)
        place += DRAFT_BYTES
        team.share(run, run.attend, place)
        place += LEVEL_BYTES
        for _ in range(3):
            team.call(run.lead, place)
            place += DRAFT_BYTES

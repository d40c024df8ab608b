"""A level of a tree search in five kernels: its nodes, the best children of each (two), and the next level's candidates (two). Two
more of `filters` come before the children where unlikely tokens are dropped, and one after them where a text's guesses are checked.

They do what `drafters.device_search` says, on the same arrays, where the order of what they hold is told too. No program
waits for another, and none depends on which comes first. Of equal scores the lower token goes first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import triton
from torch import Tensor
from triton.errors import TritonError

from ...errors import KernelError, first_line
from ...tree import Nodes
from ..search_columns import BECAME, ROW
from . import INTERPRETED
from .filters import least_keys
from .search_choice import offer, rank
from .search_level import add, agree, begin, best

# Tokens of the vocabulary that one program looks through.
CHUNK = 2048
# Candidates that one program ranks, and that it compares them with at a time. The interpreter takes long over each program.
RANKED = 2048 if INTERPRETED else 128
COMPARED = 256 if INTERPRETED else 32
# Places of a level that a program does at least, see `search_level`.
LEAST_PLACES = 2
# Lanes for RANKS children, SHARPNESS and a node's path.
CHILD_LANES = 8
SHARP_LANES = 16
# Lanes for a node's chances.
CHANCE_LANES = 16


class SearchKernels:
    """The kernels of one search. `arrays`: all that they look at and change, by the names of their parameters, and sizes."""

    def __init__(self, arrays: Mapping[str, Any]):
        self.arrays = dict(arrays)
        self.widest: int = arrays["widest"]
        self.most: int = arrays["MOST_NODES"]
        # Places that there is room for.
        self.held = max(self.widest, LEAST_PLACES)
        self.where = arrays["node"].device
        ints = {"dtype": torch.int64, "device": self.where}
        self.arrays |= {
            "WIDEST": self.widest,
            "WIDE": triton.next_power_of_2(arrays["ROWS"]),
            # The candidates that became nodes, and what the host will be told is so many levels.
            "held": self.held,
            "taken": torch.zeros((BECAME + 1, self.held), **ints),
            "begun": torch.zeros(1, **ints),
            # The likeliest children, best first, by node and rank; -1 for none. The end of each row's chain.
            "picked": torch.full((self.widest,), -1, **ints),
            "tips": torch.full((arrays["ROWS"],), -1, **ints),
            "taken_chances": torch.zeros(self.held, dtype=torch.float64, device=self.where),
            "picked_chances": torch.full((self.widest,), -1.0, dtype=torch.float64, device=self.where),
        }

    @property
    def taken(self) -> Tensor:
        """[BECAME + 1, widest] The candidates of this level: as the rows of candidates, and the node that each became."""
        taken: Tensor = self.arrays["taken"]
        return taken[:, : self.widest]

    def begin(self, width: int, guessed: bool) -> Nodes:
        """Make `width` candidates nodes, in order; those that are none, or find no room, are inert. `guessed`: they are roots and
        chains behind these."""
        places = max(width, LEAST_PLACES)
        made = {
            name: torch.empty(places, dtype=torch.int64, device=self.where)
            for name in ("tokens", "rows", "slots", "positions", "prefix")
        }
        made["tail"] = torch.empty((places, self.most), dtype=torch.int64, device=self.where)
        each = places if INTERPRETED else LEAST_PLACES
        sizes = {"P": each, "W": places, "T": triton.next_power_of_2(self.most)}
        self._launch(begin, (places // each,), {**made, "width": width}, 4, **sizes, GUESSED=guessed)
        return Nodes(**made)[:width]

    def clear(self) -> None:
        """Forget what was chosen, where no level begins before the next choice."""
        self.arrays["picked"].fill_(-1)
        self.arrays["picked_chances"].fill_(-1.0)
        self.arrays["tips"].fill_(-1)

    def best(self, logits: Tensor, first: int, sampled: bool, filtered: bool) -> Tensor:
        """[n, chunks, RANKS] int64: the best tokens of each chunk of the vocabulary after nodes `first` and so on, each in one
        number with its score. logits: [n, vocabulary]; noise is added to them where rows are `sampled`, after unlikely tokens are
        dropped where some of these are `filtered`."""
        count, vocabulary = logits.shape
        chunk = min(CHUNK, triton.next_power_of_2(vocabulary))
        chunks = triton.cdiv(vocabulary, chunk)
        keys = torch.empty((count, chunks, self.arrays["RANKS"]), dtype=torch.int64, device=self.where)
        least = keys
        if filtered:
            with _refusals():
                least = least_keys(logits, self.arrays["taken"][ROW, first : first + count], self.arrays)
        given = {
            "logits": logits, "keys": keys, "least": least, "first": first, "vocabulary": vocabulary, "stride": logits.stride(0),
        }  # fmt: skip
        places = count if INTERPRETED else 1
        sizes = {"P": places, "CHUNK": chunk, "SAMPLED": sampled, "FILTERED": filtered}
        self._launch(best, (count // places, chunks), given, 4, **sizes)
        return keys

    def add(self, keys: Tensor, first: int) -> None:
        """Write nodes `first` and so on with the best of their children in `keys`, and the chance of each."""
        count, chunks, ranks = keys.shape
        each = max(count, LEAST_PLACES) if INTERPRETED else LEAST_PLACES
        sizes = {"P": each, "KEYS": chunks * ranks, "LANES": triton.next_power_of_2(chunks * ranks)}
        given = {"keys": keys, "first": first, "places": count}
        self._launch(add, (triton.cdiv(count, each),), given, 4, S=SHARP_LANES, C=CHILD_LANES, **sizes)

    def agree(self, rows: int) -> None:
        """Of the chains behind `rows` roots, keep the tokens that are first choices one after another."""
        self._launch(agree, (rows,), {}, 1, N=self.widest, LANES=CHANCE_LANES)

    def choose(self, rows: int, together: int) -> None:
        """Choose the candidates of the next level, of `rows` rows; at most `together` where no shape is forced."""
        arrays = self.arrays
        given = {"rows": rows, "together": together}
        blocks = triton.cdiv(self.most * arrays["RANKS"], RANKED)
        self._launch(rank, (rows, blocks), given, 4, BLOCK=RANKED, STEP=COMPARED)
        self._launch(offer, (1,), given, 4, L=self.widest, R=triton.next_power_of_2(rows))

    def _launch(self, kernel: Any, grid: tuple[int, ...], given: Mapping[str, Any], warps: int, **sizes: Any) -> None:
        """Parameters are bound by name. Products and sums stay apart, as torch rounds them."""
        known = {**self.arrays, **given, **sizes}
        named = {name: known[name] for name in kernel.arg_names}
        with _refusals():
            kernel[grid](**named, num_warps=warps, enable_fp_fusion=False)


@contextmanager
def _refusals() -> Iterator[None]:
    """What Triton says of a kernel that it does not run is a KernelError."""
    try:
        yield
    except (TritonError, RuntimeError) as error:
        # Memory that is not there and a GPU that is lost are no matter of this kernel.
        if isinstance(error, torch.OutOfMemoryError) or "CUDA" in str(error):
            raise
        raise KernelError(f"Triton does not run the search's kernels here ({first_line(error)})") from error

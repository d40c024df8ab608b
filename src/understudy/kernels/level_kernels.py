"""What kernels do of a tree search whose arrays lie on a device."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..tree import Nodes


class LevelKernels(Protocol):
    """Kernels that run one level of a tree search after another, on arrays that lie on the device."""

    @property
    def taken(self) -> Tensor:
        """[BECAME + 1, widest] int64: the candidates of the latest level; see `kernels.search_columns`."""

    def begin(self, width: int, guessed: bool) -> Nodes:
        """Make `width` candidates nodes; `guessed`: they are roots and chains behind these."""

    def clear(self) -> None:
        """Forget what was chosen, as `begin` does."""

    def best(self, logits: Tensor, first: int, sampled: bool, filtered: bool) -> Tensor:
        """Of logits [n, vocab] after nodes `first` and so on, the best tokens, for `add`: with noise, `filtered` before."""

    def add(self, keys: Tensor, first: int) -> None:
        """Write these nodes, with the best of their children."""

    def agree(self, rows: int) -> None:
        """Keep of the chains behind `rows` roots what are first choices one after another."""

    def choose(self, rows: int, together: int) -> None:
        """Choose the candidates of the next level, of `rows` rows: at most so many `together`, unless the shape is forced."""

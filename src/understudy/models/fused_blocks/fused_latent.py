"""Queries, keys and values that come of a latent state, for levels of the draft: norms are part of the products after them, and
what goes to attention is put side by side once (multi-head latent attention: DeepSeek-V2, 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...kernels.blocks import JoinedProduct


@dataclass(frozen=True)
class LatentProduct:
    """A `JoinedProduct`: hidden states x [m, columns] -> queries, keys and values of all heads, side by side [m, outputs].

    `first` makes what queries come of, the latent state, and the numbers of keys that are turned, which all heads share. `queries`
    makes queries of the first of those (None: they are queries), and `widened` the other numbers of keys, and values, of the
    second."""

    first: JoinedProduct
    queries: JoinedProduct | None
    widened: JoinedProduct
    # as many of queries as of keys and of values
    heads: int
    # numbers of a key that are turned, the last ones
    turned: int
    value_size: int

    @property
    def columns(self) -> int:
        return self.first.columns

    @property
    def outputs(self) -> int:
        return 2 * self._queries_in_all + self.heads * self.value_size

    @property
    def fits(self) -> bool:
        """Are all products as large as each other asks for?"""
        key, rest = divmod(self._queries_in_all, self.heads)
        widened = self.heads * (key - self.turned + self.value_size)
        given = self._given == (self._queries_in_all if self.queries is None else self.queries.columns)
        return rest == 0 and 0 < self.turned < key and self.widened.outputs == widened and given

    @property
    def _given(self) -> int:
        """How many numbers queries come of."""
        return self.first.outputs - self.widened.columns - self.turned

    @property
    def _queries_in_all(self) -> int:
        """Numbers of the queries of all heads, and of the keys."""
        return self._given if self.queries is None else self.queries.outputs

    def __call__(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        assert added is None
        line, count = self.first(x), len(x)
        given, latent, shared = line[:, : self._given], line[:, self._given : -self.turned], line[:, -self.turned :]
        widened = self.widened(latent.contiguous()).view(count, self.heads, -1)
        made = x.new_empty((count, self.outputs))
        size = self._queries_in_all
        made[:, :size] = given if self.queries is None else self.queries(given.contiguous())
        keys, values = (part.view(count, self.heads, -1) for part in (made[:, size : 2 * size], made[:, 2 * size :]))
        keys[..., : -self.turned] = widened[..., : -self.value_size]
        keys[..., -self.turned :] = shared[:, None]
        values[:] = widened[..., -self.value_size :]
        return made

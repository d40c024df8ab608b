"""Which tensor of a checkpoint plays which part. Made by `models`, read by `prepare`; knows neither."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


def same_rows(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Has a tensor of `shape` the rows of one of the shape `wanted`, which may be several matrices, one below the other?"""
    return shape == wanted or (len(wanted) > 2 and shape == (math.prod(wanted[:-1]), wanted[-1]))


@dataclass(frozen=True)
class LinearSpec:
    """One nn.Linear that is streamed: its module name, the tensor it multiplies by, and [out, in]. `turned`: a checkpoint holds it
    transposed, as [in, out]; or each expert's matrix.

    Or one matrix of each of a layer's `experts`, one below the other: a parameter's name in the place of a module's, and as the
    tensor that parameter [experts, out, in], or the first of those that it is made of."""

    module: str
    weight: str
    shape: tuple[int, int]
    turned: bool = False
    # 0: it is an nn.Linear
    experts: int = 0
    # Of the experts, those that each token goes to.
    chosen: int = 0
    # Where several tensors of equal shapes are the weight, their rows one after another: all of them. Fewer than there are experts
    # have each a matrix of every expert, and an expert's matrices stand one below the other.
    pieces: tuple[str, ...] = ()

    @property
    def tensors(self) -> tuple[str, ...]:
        """All tensors of the checkpoint that it is made of."""
        return self.pieces or (self.weight,)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of each of the checkpoint's tensors."""
        rows, columns = self.shape
        if self.turned:
            return (self.experts, columns, self.outputs) if self.experts else (columns, rows)
        if self.in_turn:
            return self.experts, self.unit, columns
        if self.pieces:
            return rows // len(self.pieces), columns
        return (self.experts, rows // self.experts, columns) if self.experts else self.shape

    @property
    def outputs(self) -> int:
        """Rows of the matrix that one input is multiplied by: of one expert's where there are experts."""
        return self.shape[0] // (self.experts or 1)

    @property
    def in_turn(self) -> bool:
        """Do several tensors have each a matrix of every expert?"""
        return 1 < len(self.pieces) < self.experts

    @property
    def runs(self) -> tuple[tuple[str, int], ...]:
        """The tensors that its rows lie in, equally many rows each time, one after another: the name of each, and the first of its
        own rows that is meant."""
        if self.in_turn:
            return tuple((name, expert * self.unit) for expert in range(self.experts) for name in self.pieces)
        return tuple((name, 0) for name in self.tensors)

    @property
    def unit(self) -> int:
        """Rows of which no part has some and some of the next: those of a tensor where there are several, else of an expert."""
        if self.in_turn:
            return self.outputs // len(self.pieces)
        return self.shape[0] // (len(self.pieces) or self.experts or 1)


@dataclass(frozen=True)
class TableSpec:
    """An nn.Embedding beside the model's own that is looked up by token: its module name, and the tensor that is its table."""

    module: str
    tensor: str


@dataclass(frozen=True)
class ModelLayout:
    """All tensors of a model. `linears` are in the order a forward pass uses them, the head last."""

    linears: tuple[LinearSpec, ...]
    embedding: str
    shared: tuple[str, ...]
    # Further tables that are looked up by token.
    tables: tuple[TableSpec, ...] = ()
    # Tensors of the checkpoint that the model does not use, by the part they belong to. A Store's layout does not say.
    aside: Mapping[str, tuple[str, ...]] = field(default_factory=dict, compare=False)

    @property
    def looked_up(self) -> tuple[str, ...]:
        """The tensors that are looked up by token: the embedding table first."""
        return self.embedding, *(table.tensor for table in self.tables)

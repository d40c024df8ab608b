"""Which tensor of a checkpoint plays which part. Made by `models`, read by `prepare`; knows neither."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LinearSpec:
    """One nn.Linear that is streamed: its module name, the tensor it multiplies by, and [out, in]. `turned`: a checkpoint holds it
    transposed, as [in, out]."""

    module: str
    weight: str
    shape: tuple[int, int]
    turned: bool = False

    @property
    def stored_shape(self) -> tuple[int, int]:
        """The shape of the checkpoint's tensor."""
        return self.shape[::-1] if self.turned else self.shape


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

"""Which tensor of a checkpoint plays which part. Made by `models`, read by `prepare`; knows neither."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LinearSpec:
    """One nn.Linear that is streamed: its module name, the tensor it multiplies by, and [out, in]."""

    module: str
    weight: str
    shape: tuple[int, int]


@dataclass(frozen=True)
class ModelLayout:
    """All tensors of a model. `linears` are in the order a forward pass uses them, the head last."""

    linears: tuple[LinearSpec, ...]
    embedding: str
    shared: tuple[str, ...]

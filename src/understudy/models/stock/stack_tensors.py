"""Which tensors of a checkpoint are the matrices of all experts of a layer, of those that go by their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import CheckpointError
from ..mixtures.experts import Stack


def of_experts(path: str, stack: Stack, names: Sequence[str], tensors: Mapping[str, Any]) -> tuple[str, ...]:
    """Of the tensors `names`, those that are the `stack` at `path` of a model: one that is all of it, some with a matrix of every
    expert each, or one or more of each expert, whose rows stand one below the other.

    Raises CheckpointError where some experts have none. Those of further experts are none of the stack's."""
    first = tensors[names[0]].shape
    if len(names) == 1 or len(first) > 2 or len(names) * first[0] == stack.shape[0]:
        return tuple(names)
    own = names[: max(stack.shape[0] // first[0], 1)]
    if len(own) % stack.experts:
        what = f"of the {stack.experts} experts of {path!r} some have no tensor such as {own[0]!r}"
        raise CheckpointError(f"The checkpoint is not whole: {what}. Get it again.")
    return tuple(own)


def packed_by_outputs(info: Any) -> bool:
    """Is a stack of matrices published in four bits? Then its rows are outputs, however transformers' class keeps them."""
    packed = getattr(info, "packed", None)
    return packed is not None and packed.pairs

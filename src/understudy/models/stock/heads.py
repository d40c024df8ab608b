"""Which tensor a model's output head multiplies by, as transformers decides it: its own, or the embedding that it is tied to."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ...errors import CheckpointError, StoreError
from ...weights.store import Store
from .names import finder

# In the name of a class of the config's `architectures`: what its checkpoint was trained to do in the place of writing text.
_OTHER_TASKS = ("Classification", "Reward", "QuestionAnswering", "MultipleChoice", "MaskedLM", "TextEncoding")


def ties_head(model: nn.Module) -> bool:
    """Does the stock `model` use one weight for its embedding and its head? Its config says so, and its class must allow it."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()  # type: ignore[operator]
    return head.weight is embedding.weight


def head_and_embedding(
    model: nn.Module, head: str, embedding: str, find: Callable[[str], str | None]
) -> tuple[str, str]:
    """The checkpoint's tensors for the weights `head` and `embedding` (parameter names) of the stock `model`.

    A head that is stored is the head, also where the config ties it: transformers does not tie two tensors that differ. A tied
    head or embedding that is not stored is the other one. `find` gives the stored name of a parameter. Raises CheckpointError for
    a checkpoint without the head or the embedding that it should have."""
    own, table = find(head), find(embedding)
    if ties_head(model):
        own, table = own or table, table or own
    if own is None:
        raise CheckpointError(_headless(model, head))
    if table is None:
        raise CheckpointError(f"The checkpoint has no tensor {embedding!r}; it does not fit {type(model).__name__}.")
    return own, table


def _headless(model: nn.Module, head: str) -> str:
    named = ", ".join(getattr(model.config, "architectures", None) or ()) or "no architecture named"
    return (
        f"The checkpoint has no tensor {head!r}, the output head of {type(model).__name__} ({named}): without one it writes no"
        " text. Choose the checkpoint of the causal language model."
    )


def refuse_other_tasks(architectures: object) -> None:
    """Raise CheckpointError if the config's `architectures` name classes, all of them for something else than writing text."""
    names = [str(name) for name in architectures] if isinstance(architectures, (list, tuple)) else []
    if names and all(any(task in name for task in _OTHER_TASKS) for name in names):
        raise CheckpointError(
            f"The checkpoint is a {names[0]}, which writes no text. Choose the checkpoint of the causal language model."
        )


def refuse_wrong_head(model: nn.Module, store: Store) -> None:
    """Raise StoreError for a Store, made by an earlier version, that takes the embedding for a head of another content."""
    spec, table = store.layout.linears[-1], store.layout.embedding
    if spec.weight != table:
        return
    head = finder(model, store.extra)(f"{spec.module}.weight") if store.extra else None
    if not ties_head(model) or (head is not None and store.extra[head].checksum != store.embedding.checksum):
        raise StoreError(
            f"{store.path} was prepared with the embedding in the place of the model's own head: delete it and prepare it again."
        )

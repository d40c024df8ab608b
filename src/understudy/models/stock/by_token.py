"""Which tables a stock model looks up by token, seen in a pass without numbers.

A table may be looked up by the tokens themselves, and then has a row for each, or by what is computed from them: a model whose
table lacks the last tokens (those that stand for images, say) gives these the first row, which the proof compares with
transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...errors import CheckpointError


class _FromTokens(TorchFunctionMode):
    """Knows which whole numbers and truth values are computed from `tokens`."""

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        # By the memory that they would lie in; held, so that no other tensor gets the same.
        self.known = {_memory(tokens): tokens}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        given = (*args, *(kwargs or {}).values())
        if isinstance(found, Tensor) and not found.is_floating_point() and any(self.holds(one) for one in given):
            self.known.setdefault(_memory(found), found)
        return found

    def holds(self, value: Any) -> bool:
        return isinstance(value, Tensor) and _memory(value) in self.known


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@contextmanager
def noted_lookups(model: nn.Module, tokens: Tensor, order: Sequence[str]) -> Iterator[list[str]]:
    """The embedding modules that the stock `model` looks up by token in a pass over `tokens` inside, as they are met; `order`: the
    Linears that it has used so far. Raises CheckpointError, inside, for one whose rows could not be at hand before the pass."""
    found: list[str] = []
    entry: Any = model.get_input_embeddings()  # type: ignore[operator]
    made = _FromTokens(tokens)

    def look(path: str, module: Any, args: tuple[Any, ...]) -> None:
        if not made.holds(args[0]):
            return
        if order:
            raise CheckpointError(f"{path} is looked up by token after {order[-1]}; this is not supported yet.")
        if len(module.weight) < len(entry.weight) and _memory(args[0]) == _memory(tokens):
            raise CheckpointError(f"{path} has fewer rows than the model has tokens; this is not supported.")
        found.append(path)

    embeddings = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.Embedding)]
    hooks = [m.register_forward_pre_hook(partial(look, path)) for path, m in embeddings]
    try:
        with made:
            yield found
    finally:
        for hook in hooks:
            hook.remove()

"""Where a model computes what is no number: a second pass over the same tokens looks at what each Linear is given and gives.

It runs only after such logits were seen. No pass before that pays for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import NumbersError
from ..tree import Nodes, TokenTree
from .mixtures.routed import Routed, Rows, rows_in
from .target import TILE, Multiply

if TYPE_CHECKING:
    from .model import Model

# What may be tried where numbers of one type overflow.
WIDER = {
    torch.float16: "try --dtype bfloat16 or --dtype float32",
    torch.bfloat16: "try --dtype float32",
    torch.float32: "the checkpoint itself seems damaged: fetch it again",
}


class Watch:
    """Multiplies as `multiply` does, and keeps in `place` where the first value arose that is no number."""

    def __init__(self, multiply: Multiply, modules: Sequence[str]):
        self.multiply = multiply
        # The names of the Linears in the order of a pass.
        self.modules = modules
        self.place: str | None = None

    def __call__(self, index: int, tiles: Sequence[Rows], rows: int) -> list[Tensor]:
        """tiles: each [TILE, K], of which `rows` rows are nodes and the others padding, or routed rows."""
        name = self.modules[index]
        if self.place is None and not _numbers(tiles, rows):
            before = f"between {self.modules[index - 1]} and" if index else "before"
            self.place = f"{before} {name}"
        products = self.multiply(index, tiles, rows)
        if self.place is None and not _numbers(products, sum(map(len, products)) if isinstance(tiles[0], Routed) else rows):
            self.place = f"in the product of {name}"
        return products


def _numbers(tiles: Sequence[Rows], rows: int) -> bool:
    return bool(torch.isfinite(rows_in(tiles, rows)).all())


@torch.inference_mode()
def explain(model: Model, tokens: Sequence[int], row: int) -> NumbersError:
    """Why the logits after `tokens` are no numbers: the tensor or the Linear they come from, and what to try.

    Runs the target over all tokens again, in cache row `row`, whose content is lost."""
    named = [spec.module for spec in model.store.layout.linears]
    place = _broken_tensor(model) or _first_place(model, tokens, row, named) or f"after {named[-1]}"
    kind = str(model.dtype).removeprefix("torch.")
    return NumbersError(
        f"The logits after token {len(tokens)} of the text are no numbers (NaN or infinity). The first of them arose {place},"
        f" computing in {kind}: {WIDER[model.dtype]}."
    )


def _broken_tensor(model: Model) -> str | None:
    """The tensor that both views share and that holds what is no number."""
    for name, tensor in model.module.named_parameters():
        if tensor.numel() and not bool(torch.isfinite(tensor).all()):
            return f"in the tensor {name}"
    return None


def _first_place(model: Model, tokens: Sequence[int], row: int, named: Sequence[str]) -> str | None:
    watch = Watch(model.target.multiply, named)
    target = replace(model.target, multiply=watch)
    most = model.plan.passes.tiles * TILE
    model.cache.rewind(row, 0)
    for start in range(0, len(tokens), most):
        chunk = tokens[start : start + most]
        target(Nodes.of(TokenTree.chain(chunk), row, start), torch.tensor([len(chunk) - 1]), lambda logits, first: logits[:, :0])
        if watch.place is not None:
            break
        model.cache.keep(row, torch.arange(len(chunk)))
    return watch.place

"""Linears that lie whole multiply each row for itself in passes that are one forward, and as ever elsewhere."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from understudy.models.by_rows import by_rows


class Router(nn.Module):
    """As those of transformers: it calls the function itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.float(), self.weight).softmax(-1)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(5, 4), nn.LayerNorm(4)
        self.gate, self.router = nn.Linear(4, 2), Router()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.table(tokens))
        return torch.cat([self.gate(x), self.router(input) if (input := x) is not None else x], -1)


class Pass:
    """A pass that is one forward."""


def product(x: Tensor, weight: Tensor) -> Tensor:
    """Row by row."""
    assert x.dim() == 2
    seen.append(len(x))
    return torch.stack([weight @ row for row in x])


seen: list[int] = []


def test_in_passes_of_its_kind_and_nowhere_else() -> None:
    model, tokens = Model(), torch.tensor([[1, 2, 3, 0, 4, 1, 2]])
    plain = model(tokens)
    current: Any = SimpleNamespace(under_way=None)
    assert by_rows(model, current, Pass, product) == 2
    assert torch.equal(model(tokens), plain) and not seen
    current.under_way = Pass()
    assert torch.allclose(model(tokens), plain, atol=1e-6) and seen == [7, 7]
    current.under_way = object()
    assert torch.equal(model(tokens), plain) and seen == [7, 7]

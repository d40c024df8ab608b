"""The way of a GPU for codes of 4 bits, in the interpreter: its instructions for whole words are followed one by one."""

import pytest
import torch

pytest.importorskip("triton")
from tests.four_bits import compare
from tests.inline_asm import follow
from understudy.kernels.gpu import draft_product

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs the instructions itself")


@pytest.mark.parametrize("shares", [1, 2])
@pytest.mark.parametrize(("columns", "group", "rows"), [(448, 64, 5), (256, 128, 19), (96, 32, 8)])
def test_it_is_the_product(columns: int, group: int, rows: int, shares: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft_product, "INTERPRETED", False)
    follow(monkeypatch.setattr)
    monkeypatch.setattr(draft_product, "shared_out", lambda _, steps, *__: draft_product.ColumnShares(shares, -(-steps // shares)))
    compare(columns, group, rows)

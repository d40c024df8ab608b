"""Products by the keys of a path on a GPU, here in Triton's interpreter: programs share them out."""

import pytest
import torch

pytest.importorskip("triton")
from tests.kernels.gpu.test_rule import SHAPES, Sizes, opened, run, shape_of, steps, texts
from understudy.kernels.gpu import rule
from understudy.tree import Nodes, TokenTree


@pytest.mark.parametrize("kind", [SHAPES[0], SHAPES[-1]])
def test_keys_of_a_path_are_shared_out_among_programs(kind: tuple[Sizes, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    shape = shape_of(*kind)
    found = []
    for parts in (1, 4):
        monkeypatch.setattr(rule, "PARTS", parts)
        state = opened(shape)
        texts(state, 100, 1)
        found.append(run(state, steps(shape, 5, True, 2), Nodes.of(TokenTree.chain([0] * 5), 0, 100)))
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-6)

"""The slab: an accepted path ends up in position order, whatever its slots were."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.test_tree import path_to, trees
from understudy.cache import Cache, LayerShape
from understudy.tree import Nodes, TokenTree


@given(trees(), st.integers(0, 30), st.data())
def test_keep_puts_the_path_in_order(tree: TokenTree, length: int, data: st.DataObject) -> None:
    cache = Cache([LayerShape(3, 4, 5)] * 2, 2, 128, torch.float32)
    cache.lengths[1] = length
    before = torch.arange(length)[:, None, None].expand(-1, 3, 4).float()
    cache.layers[0].keys[1, :, :length] = before.transpose(0, 1)
    nodes = Nodes.of(tree, 1, length)
    keys = (1000 + torch.arange(len(tree)))[:, None, None].expand(-1, 3, 4).float()
    values = -(1000 + torch.arange(len(tree)))[:, None, None].expand(-1, 3, 5).float()
    for layer in cache.layers:
        layer.write(nodes, keys, values)
    path = torch.tensor(path_to(tree, data.draw(st.integers(0, len(tree) - 1))))
    cache.keep(1, path)
    end = length + len(path)
    assert cache.lengths == [0, end]
    for layer in cache.layers:
        assert torch.equal(layer.keys[1, :, length:end], keys[path].transpose(0, 1))
        assert torch.equal(layer.values[1, :, length:end], values[path].transpose(0, 1))
    assert torch.equal(cache.layers[0].keys[1, :, :length], before.transpose(0, 1))
    assert not cache.layers[0].keys[0].any(), "the other row was touched"
    assert cache.rewind(1, length) == length
    assert cache.lengths == [0, length]

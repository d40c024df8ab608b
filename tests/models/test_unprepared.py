"""A model that runs from tensors as they are gives the stock model's logits, and reads nothing but what both views share."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.tiny import stock
from understudy.devices.processor import Processor
from understudy.errors import StoreError
from understudy.models.embedding import TensorRows
from understudy.models.stock import structure
from understudy.models.streamed import attention_name
from understudy.models.target import Target
from understudy.models.unprepared import Unprepared, unprepared
from understudy.tree import Nodes, TokenTree
from understudy.weights.layout import ModelLayout

TEXTS = [[17, 45, 200, 3, 17], [9, 9, 80, 1, 2, 3, 4, 5, 6, 7] * 4]


class Tensors:
    """The tensors of a stock model, which notes what is read of them."""

    def __init__(self, family: str):
        self.model = stock(family)
        self.named: dict[str, Tensor] = self.model.state_dict()
        self.read: list[str] = []
        self.layout: ModelLayout = structure.layout(
            structure.skeleton(self.model.config, torch.float32, attention_name()),
            structure.foretold(self.model, torch.float32, Path()),
        )

    def __call__(self, name: str) -> Tensor:
        self.read.append(name)
        return self.named[name]

    def open(self, room: tuple[int, int]) -> Unprepared:
        return unprepared(self.model.config, torch.float32, self.layout, self, room)


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3"])
def test_its_logits_are_those_of_the_stock_model(family: str) -> None:
    tensors = Tensors(family)
    model = tensors.open((2, 64))
    assert sorted(tensors.read) == sorted(tensors.layout.shared)
    weights = [tensors.named[spec.weight].T for spec in tensors.layout.linears]
    used: list[int] = []

    def multiply(index: int, tiles: list[Tensor], _: int) -> list[Tensor]:
        used.append(index)
        return [x @ weights[index] for x in tiles]

    embed = TensorRows(model.module.get_input_embeddings(), tensors.named[tensors.layout.embedding])  # type: ignore[operator]
    target = Target(model.module, model.base, model.current, model.cache, embed, multiply, Processor(threads=1))
    nodes = Nodes.join([Nodes.of(TokenTree.chain(text), row, 0) for row, text in enumerate(TEXTS)])
    with torch.inference_mode():
        found = target(nodes, torch.arange(len(nodes)))
        wanted = torch.cat([tensors.model(torch.tensor([text])).logits[0] for text in TEXTS])
    assert used == list(range(len(weights))), "every Linear once, in order, for all tiles"
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("tokens", "places"), [(1, 64), (64, 64), (65, 128)])
def test_it_has_room_for_whole_blocks_of_tokens(tokens: int, places: int) -> None:
    cache = Tensors("llama").open((3, tokens)).cache
    assert len(cache.layers) == 3 and len(cache.lengths) == 3
    assert {layer.keys.shape[0] for layer in cache.layers} == {3}
    assert {layer.keys.shape[2] for layer in cache.layers} == {places}


def test_a_tensor_that_nobody_gives_is_named() -> None:
    tensors = Tensors("llama")
    tensors.layout = ModelLayout(tensors.layout.linears, tensors.layout.embedding, tensors.layout.shared[1:])
    with pytest.raises(StoreError, match=r"no tensor 'model\.layers\.0\.input_layernorm\.weight'"):
        tensors.open((1, 64))

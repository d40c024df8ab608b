"""A mixer has what the stock module has, under the same names."""

import pytest
import torch

from tests.tiny import FAMILIES, stock
from understudy.models.recurrent_layers.mixer import Mixer, of_heads
from understudy.models.recurrent_layers.mixers import install_mixers, recurs

RECURRENT = [family for family in FAMILIES if recurs(stock(family).config)]


@pytest.mark.parametrize("family", RECURRENT)
def test_mixers_take_the_places_of_stock_modules_under_the_same_names(family: str) -> None:
    model = stock(family)
    stored, buffers = set(model.state_dict()), {name for name, _ in model.named_buffers()}
    install_mixers(model)
    mixers = [module for module in model.modules() if isinstance(module, Mixer)]
    assert mixers and len({mixer.layer_idx for mixer in mixers}) == len(mixers)
    assert set(model.state_dict()) == stored and {name for name, _ in model.named_buffers()} == buffers


def test_a_matrix_for_each_head_is_multiplied_on_any_device() -> None:
    weights, rows = torch.randn(3, 5, 4), torch.randn(7, 3, 4)
    assert torch.allclose(of_heads(weights)(rows), torch.einsum("hok,nhk->nho", weights, rows), atol=1e-5)
    assert of_heads(weights.to("meta"))(rows.to("meta")).shape == (7, 3, 5)

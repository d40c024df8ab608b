"""Layers of heads: what they keep, their two kinds of attention, and rotary positions that stay in float32."""

import pytest
import torch

from tests.heads.golden import FACTS, HIDDEN, KEY, KV_HEADS, LAYER, randomized
from understudy.errors import CheckpointError
from understudy.heads import HeadConfig, Places
from understudy.heads.layers import HeadLayers, Rope, layer_shapes, llama_config
from understudy.layer_states import LayerShape
from understudy.models.stock import hf
from understudy.models.streamed import CurrentPass

CONFIG = HeadConfig("eagle", FACTS, (-1,), layers=2, layer=LAYER)


def test_each_layer_keeps_keys_and_values_of_each_token() -> None:
    assert layer_shapes(CONFIG) == (LayerShape(KV_HEADS, KEY, KEY),) * 2
    assert layer_shapes(HeadConfig("medusa", FACTS, (-1,), heads=2)) == ()


def test_a_mask_says_what_each_token_sees() -> None:
    layers = randomized(HeadLayers.of(CONFIG, CurrentPass()))
    x = torch.randn(1, 6, HIDDEN)
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    places = torch.arange(6)[None]
    whole = layers(x, Places(places, causal))
    torch.testing.assert_close(layers(x[:, :4], Places(places[:, :4], causal[:4, :4])), whole[:, :4])
    # The last token sees the first one and itself alone.
    causal[5, 1:5] = False
    alone = layers(x[:, [0, 5]], Places(places[:, [0, 5]], torch.ones(2, 2, dtype=torch.bool).tril()))
    torch.testing.assert_close(layers(x, Places(places, causal))[:, 5], alone[:, 1])


def test_attention_depends_on_distances_alone() -> None:
    layers = randomized(HeadLayers.of(CONFIG, CurrentPass()))
    x, causal = torch.randn(1, 6, HIDDEN), torch.ones(6, 6, dtype=torch.bool).tril()
    near, far = (layers(x, Places(torch.arange(start, start + 6)[None], causal)) for start in (0, 100))
    torch.testing.assert_close(near, far, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(near, layers(x, Places(2 * torch.arange(6)[None], causal)), atol=1e-2)


def test_rotary_positions_are_exact_in_any_type() -> None:
    rope = Rope(hf.llama().LlamaRotaryEmbedding, llama_config(CONFIG))
    positions = torch.tensor([[3, 1000]])
    cosine, sine = rope(torch.zeros(1, 2, HIDDEN, dtype=torch.bfloat16), positions)
    exact, _ = rope(torch.zeros(1, 2, HIDDEN), positions)
    assert cosine.dtype == sine.dtype == torch.bfloat16
    assert torch.equal(cosine, exact.bfloat16())
    layers = HeadLayers.of(CONFIG, CurrentPass()).bfloat16()
    assert not [name for name in layers.state_dict() if "rope" in name]


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_ropes_that_depend_on_the_length_of_a_text_are_refused(kind: str) -> None:
    ropes = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0, "short_factor": [1.0] * 3, "long_factor": [2.0] * 3}
    wrong = HeadConfig("eagle", FACTS, (-1,), layers=1, layer=LAYER | {"rope_parameters": ropes})
    with pytest.raises(CheckpointError, match=f"rope_type '{kind}' is not one of default, linear, llama3, yarn"):
        llama_config(wrong)

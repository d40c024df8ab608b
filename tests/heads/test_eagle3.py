"""EAGLE-3, with each of the options that published heads have, against a plain reference."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.heads.golden import (
    FACTS,
    HIDDEN,
    LAYER,
    VOCABULARY,
    assert_golden,
    attention,
    feed_forward,
    layer,
    norm,
    part,
    randomized,
)
from understudy.heads import DraftHead, HeadConfig, TargetWeights
from understudy.heads.eagle3 import Eagle3

SHAPES: dict[str, tuple[int, dict[str, Any]]] = {
    "published": (1, {}),
    "of three layers": (3, {}),
    "norm before the residual": (1, {"norm_before_residual": True}),
    "norm before the Linear": (1, {"norm_before_fc": True}),
    "EAGLE 3.1": (1, {"fc_norm": True, "norm_output": True}),
}


def made(shape: str) -> DraftHead:
    layers, options = SHAPES[shape]
    return randomized(Eagle3(HeadConfig("eagle3", FACTS, (2, 4, 5), 12, layers=layers, layer=LAYER, options=options)))


def first_layer(embedded: Tensor, hidden: Tensor, weights: dict[str, Tensor], options: dict[str, Any]) -> Tensor:
    normed = norm(hidden, weights["hidden_norm.weight"])
    x = torch.cat([norm(embedded, weights["input_layernorm.weight"]), normed], -1)
    x = attention(x, weights) + (normed if options.get("norm_before_residual") else hidden)
    return x + feed_forward(norm(x, weights["post_attention_layernorm.weight"]), weights)


def reference(head: DraftHead, hidden: Tensor, embedded: Tensor, path: Tensor) -> Tensor:
    """The whole sequence is run anew for each token of the path: what the last layer gives for one is the state before the next."""
    weights, options = dict(head.state_dict()), head.config.options
    taps = [hidden[:, index] for index in range(3)]
    if options.get("fc_norm"):
        taps = [norm(tap, weights[f"tap_norms.{index}.weight"]) for index, tap in enumerate(taps)]
    joined = torch.cat(taps, -1)
    if options.get("norm_before_fc"):
        joined = norm(joined, weights["joined_norm.weight"])
    before = joined @ weights["fc.weight"].T
    features, state = [], torch.empty(0)
    for token in [None, *path]:
        if token is not None:
            before, embedded = torch.cat([before, state[None]]), torch.cat([embedded, token[None]])
        x = first_layer(embedded, before, part(weights, "layers.0."), options)
        for index in range(1, head.config.layers):
            x = layer(x, part(weights, f"layers.{index}."))
        features.append(norm(x[-1], weights["norm.weight"]))
        state = features[-1] if options.get("norm_output") else x[-1]
    return torch.stack(features)


@pytest.mark.parametrize("shape", SHAPES)
def test_features_of_a_tree_are_those_of_its_paths_alone(shape: str) -> None:
    head = made(shape)
    assert_golden(head, lambda *given: reference(head, *given), depth=3)


def test_the_first_attention_reads_twice_the_hidden_size() -> None:
    weights = made("of three layers").state_dict()
    wide, stock = weights["layers.0.self_attn.q_proj.weight"], weights["layers.1.self_attn.q_proj.weight"]
    assert wide.shape[1] == 2 * HIDDEN and stock.shape[1] == HIDDEN


def test_it_says_tokens_of_its_own_vocabulary() -> None:
    head = made("published")
    assert head.token_map is not None and head.output is not None
    head.token_map.copy_(torch.arange(12) * 3)
    head.start(TargetWeights(torch.randn(VOCABULARY, HIDDEN)))
    states = torch.randn(1, 2, HIDDEN)
    whole = torch.nn.Linear(HIDDEN, VOCABULARY, bias=False)
    target = TargetWeights(whole.weight.detach())
    head.start(target)
    logits = head.scores(states, 0, whole)
    torch.testing.assert_close(logits, whole(head.features(states, 0))[..., ::3][..., :12])

"""EAGLE of one layer and of several against a plain reference, where drafts are made and in training."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from tests.heads.golden import (
    FACTS,
    HIDDEN,
    LAYER,
    VOCABULARY,
    GoldenCase,
    assert_golden,
    layer,
    norm,
    part,
    randomized,
)
from understudy.heads import DraftHead, HeadConfig, Places, TargetWeights
from understudy.heads.eagle import Eagle

SHAPES: dict[str, tuple[int, dict[str, Any]]] = {
    "published": (1, {}),
    "without a bias": (1, {"bias": False, "first_norm": True}),
    "as in Scylla": (3, {"last_norm": True}),
}


def made(shape: str) -> DraftHead:
    layers, options = SHAPES[shape]
    return randomized(Eagle(HeadConfig("eagle", FACTS, (-1,), layers=layers, layer=LAYER, options=options)))


def reference(head: DraftHead, hidden: Tensor, embedded: Tensor, path: Tensor) -> Tensor:
    """The whole sequence is run anew for each token of the path: the feature of one is the hidden state of the next."""
    weights = dict(head.state_dict())
    before = hidden[:, 0]
    features: list[Tensor] = []
    for token in [None, *path]:
        if token is not None:
            before, embedded = torch.cat([before, features[-1][None]]), torch.cat([embedded, token[None]])
        x = torch.cat([embedded, before], -1) @ weights["fc.weight"].T + weights.get("fc.bias", torch.zeros(HIDDEN))
        for index in range(head.config.layers):
            x = layer(x, part(weights, f"layers.{index}."))
        features.append(norm(x[-1], weights["norm.weight"]) if "norm.weight" in weights else x[-1])
    return torch.stack(features)


@pytest.mark.parametrize("shape", SHAPES)
def test_features_of_a_tree_are_those_of_its_paths_alone(shape: str) -> None:
    head = made(shape)
    assert_golden(head, lambda *given: reference(head, *given), depth=4)


def test_only_the_published_first_layer_has_no_norm_at_its_input() -> None:
    assert "layers.0.input_layernorm.weight" not in made("published").state_dict()
    assert "layers.0.input_layernorm.weight" in made("without a bias").state_dict()
    assert "layers.1.input_layernorm.weight" in made("as in Scylla").state_dict()


def test_training_computes_what_drafting_does() -> None:
    """Teacher forcing of two texts at once: the first step from the target's hidden states, the next ones from features, with
    keys of the steps before in a cache that gradients go through."""
    head = made("as in Scylla").requires_grad_(True).train()
    cases = [GoldenCase.of(head.config, depth=1, seed=seed) for seed in (1, 2)]
    hidden = torch.stack([case.hidden for case in cases])
    embedded = torch.stack([case.table[case.text[1:]] for case in cases])
    count = hidden.shape[1]
    causal = torch.ones(count, count, dtype=torch.bool).tril()
    cache = DynamicCache()
    first = head.begin(hidden, embedded, Places(torch.arange(count)[None].expand(2, -1), causal, cache))
    # A second step: token j has the state of j - 1 of the first one before it, and sees the first step's keys up to there.
    moved = torch.eye(count - 1, dtype=torch.bool)
    seen = torch.cat([causal[: count - 1], moved], -1)
    places = Places(torch.arange(1, count)[None].expand(2, -1), seen, cache)
    second = head.follow(first[:, :-1], embedded[:, 1:], 1, places)
    for index, case in enumerate(cases):
        for length in (1, 5, count - 1):
            expected = reference(head, case.hidden[:length], embedded[index, :length], embedded[index, length : length + 1])
            torch.testing.assert_close(first[index, length - 1], expected[0], rtol=2e-4, atol=2e-5)
            torch.testing.assert_close(second[index, length - 1], expected[1], rtol=2e-4, atol=2e-5)
    second.sum().backward()
    assert all(weight.grad is not None and bool(weight.grad.isfinite().all()) for weight in head.parameters())


def test_logits_are_the_targets_head_of_the_features() -> None:
    head = made("published")
    target = torch.nn.Linear(HIDDEN, VOCABULARY, bias=False)
    states = torch.randn(1, 3, HIDDEN)
    assert torch.equal(head.scores(states, 2, target), target(states))
    assert head.attends_in_tree


def test_a_deep_head_begins_as_a_shallow_one() -> None:
    torch.manual_seed(1)
    deep = made("as in Scylla")
    deep.start(TargetWeights(torch.randn(VOCABULARY, HIDDEN)))
    shallow = Eagle(HeadConfig("eagle", FACTS, (-1,), layers=1, layer=LAYER, options={"last_norm": True}))
    shallow.load_state_dict(deep.state_dict(), strict=False)
    places = Places(torch.arange(5)[None], torch.ones(5, 5, dtype=torch.bool).tril()[None, None])
    inputs = torch.randn(1, 5, 1, HIDDEN), torch.randn(1, 5, HIDDEN), places
    assert torch.equal(deep.begin(*inputs), shallow.begin(*inputs))
    deep.requires_grad_(True).begin(*inputs).sum().backward()  # type: ignore[no-untyped-call]
    learned = [name for name, parameter in deep.named_parameters() if parameter.grad is not None and bool(parameter.grad.any())]
    assert {"layers.1.mlp.down_proj.weight", "layers.2.self_attn.o_proj.weight"} <= set(learned)

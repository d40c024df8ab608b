"""Clover against a plain reference, and the values that its training begins with."""

import torch
from torch import Tensor

from tests.heads.golden import (
    FACTS,
    HIDDEN,
    LAYER,
    VOCABULARY,
    assert_golden,
    gated,
    layer,
    norm,
    part,
    randomized,
    residual_block,
)
from understudy.heads import BEFORE_NORM, DraftHead, HeadConfig, Places, TargetWeights
from understudy.heads.clover import AttentionDecoder, Clover

CONFIG = HeadConfig("clover", FACTS, (BEFORE_NORM,), heads=3, layers=1, layer=LAYER)


def reference(head: DraftHead, hidden: Tensor, embedded: Tensor, path: Tensor) -> Tensor:
    """The block runs over the whole text; then each head reads the state of the one before and the token it guessed."""
    weights = dict(head.state_dict())
    state = norm(layer(hidden[:, 0], part(weights, "layers.0."))[-1], weights["norm.weight"])
    features = []
    for index, token in enumerate([embedded[-1], *path]):
        state = gated(state, token / token.pow(2).sum().sqrt(), part(weights, "decoder."))
        features.append(residual_block(state, part(weights, f"heads.{index}.")))
    return torch.stack(features)


def test_features_of_a_tree_are_those_of_its_paths_alone() -> None:
    head = randomized(Clover(CONFIG))
    assert_golden(head, lambda *given: reference(head, *given), depth=2)
    assert not head.attends_in_tree


def test_the_attention_decoder_is_a_gate_and_no_softmax_over_one_key() -> None:
    decoder = randomized(AttentionDecoder(CONFIG))
    x, embedded = torch.randn(2, 1, 1, HIDDEN)
    value = decoder.value(embedded)
    added = decoder(x, embedded) - x
    assert not torch.allclose(added, value, atol=1e-2)
    assert bool((added.abs() <= value.abs() + 1e-6).all())
    # A query in the other direction turns the gate round.
    decoder.query.weight.neg_()
    decoder.query.bias.neg_()
    torch.testing.assert_close(decoder(x, embedded) - x, -added)


def test_training_begins_with_the_targets_own_prediction() -> None:
    target = randomized(Clover(CONFIG), seed=3)
    last = dict(target.layers[0].named_parameters())  # type: ignore[operator]
    weights = TargetWeights(torch.randn(VOCABULARY, HIDDEN), torch.rand(HIDDEN) + 0.5, last)
    head = Clover(CONFIG)
    head.start(weights)
    assert all(torch.equal(tensor, last[name]) for name, tensor in head.layers[0].named_parameters())
    hidden, embedded = torch.randn(1, 4, 1, HIDDEN), torch.randn(1, 4, HIDDEN)
    causal = torch.ones(4, 4, dtype=torch.bool).tril()
    places = Places(torch.arange(4)[None], causal)
    states = head.begin(hidden, embedded, places)
    assert weights.norm is not None
    torch.testing.assert_close(head.features(states, 2)[0], norm(layer(hidden[0, :, 0], last), weights.norm), rtol=1e-3, atol=1e-4)
    assert torch.allclose(head.decoder.query.weight, torch.eye(HIDDEN), atol=0.02)
    assert not torch.equal(head.decoder.query.weight, head.decoder.key.weight)


def test_a_layer_of_another_shape_is_not_copied() -> None:
    head = Clover(CONFIG)
    before = {name: tensor.clone() for name, tensor in head.layers.named_parameters()}
    head.start(TargetWeights(torch.randn(VOCABULARY, HIDDEN), None, {"mlp.up_proj.weight": torch.zeros(3, 3)}))
    assert all(torch.equal(tensor, before[name]) for name, tensor in head.layers.named_parameters())

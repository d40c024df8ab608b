"""Clover-2 against a plain reference, and the values that its training begins with."""

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
    linear,
    norm,
    part,
    randomized,
)
from understudy.heads import BEFORE_NORM, DraftHead, HeadConfig, TargetWeights
from understudy.heads.clover2 import Clover2

CONFIG = HeadConfig("clover2", FACTS, (BEFORE_NORM,), heads=5, layers=2, layer=LAYER)


def reference(head: DraftHead, hidden: Tensor, embedded: Tensor, path: Tensor) -> Tensor:
    weights = dict(head.state_dict())
    x = torch.stack([gated(*pair, part(weights, "first_decoder.")) for pair in zip(hidden[:, 0], embedded, strict=True)])
    for index in range(2):
        x = layer(x, part(weights, f"layers.{index}."))
    state = norm(x[-1], weights["norm.weight"])
    features = [norm(linear(state, part(weights, "first_projection.")), weights["head_norm.weight"])]
    for token in path:
        state = gated(state, token, part(weights, "decoder."))
        projected = linear(torch.cat([state, token]), part(weights, "projection."))
        features.append(norm(projected, weights["head_norm.weight"]))
    return torch.stack(features)


def test_features_of_a_tree_are_those_of_its_paths_alone() -> None:
    head = randomized(Clover2(CONFIG))
    assert_golden(head, lambda *given: reference(head, *given), depth=4)
    assert not head.attends_in_tree and head.state_size == 2 * HIDDEN


def test_it_may_bring_embeddings_of_its_own() -> None:
    head = randomized(Clover2(HeadConfig("clover2", FACTS, (BEFORE_NORM,), heads=5, layers=2, layer=LAYER, own_embedding=True)))
    assert head.embedding is not None and head.embedding.shape == (VOCABULARY, HIDDEN)
    assert_golden(head, lambda *given: reference(head, *given), depth=2)


def test_training_begins_near_the_state_of_the_layers() -> None:
    weights = TargetWeights(torch.randn(VOCABULARY, HIDDEN), torch.rand(HIDDEN) + 0.5)
    head = Clover2(HeadConfig("clover2", FACTS, (BEFORE_NORM,), heads=5, layers=2, layer=LAYER, own_embedding=True))
    head.start(weights)
    assert head.embedding is not None and torch.equal(head.embedding, weights.output)
    eye = torch.eye(HIDDEN)
    assert torch.allclose(head.first_projection.weight, eye, atol=0.011)
    assert torch.allclose(head.projection.weight, torch.cat([eye, torch.zeros_like(eye)], 1), atol=0.011)
    for decoder in (head.first_decoder, head.decoder):
        assert torch.allclose(decoder.key.weight, eye, atol=0.011)
        assert 0 < float(decoder.value.weight.detach().max()) <= 0.01
    assert weights.norm is not None
    assert torch.equal(head.norm.weight, weights.norm) and torch.equal(head.head_norm.weight, weights.norm)

"""Medusa: each head guesses one token further ahead, from one hidden state."""

import torch
from torch import Tensor

from tests.heads.golden import FACTS, HIDDEN, VOCABULARY, assert_golden, part, randomized, residual_block
from understudy.heads import DraftHead, HeadConfig, TargetWeights
from understudy.heads.medusa import Medusa


def made(**options: object) -> DraftHead:
    return randomized(Medusa(HeadConfig("medusa", FACTS, (-1,), heads=3, options=dict(options))))


def reference(head: DraftHead, hidden: Tensor, embedded: Tensor, path: Tensor) -> Tensor:
    """Head k says the token k + 2 places after the last one that the target has run: the one that follows is the target's own."""
    features = []
    for depth in range(len(path) + 1):
        x = hidden[-1, 0]
        for block in range(head.config.options.get("blocks", 1)):
            x = residual_block(x, part(head.state_dict(), f"heads.{depth}.{block}."))
        features.append(x)
    return torch.stack(features)


def test_each_depth_has_a_head_of_its_own() -> None:
    for head in (made(), made(blocks=2)):
        assert_golden(head, lambda *given, head=head: reference(head, *given), depth=2)  # type: ignore[misc]


def test_output_heads_are_the_targets_or_its_own() -> None:
    target = torch.nn.Linear(HIDDEN, VOCABULARY, bias=False)
    states = torch.randn(1, 3, HIDDEN)
    shared, own = made(), made(own_outputs=True)
    assert torch.equal(shared.scores(states, 1, target), target(shared.features(states, 1)))
    expected = own.features(states, 1) @ own.state_dict()["outputs.1.weight"].T
    torch.testing.assert_close(own.scores(states, 1, target), expected)


def test_training_begins_with_what_the_target_says() -> None:
    target = TargetWeights(torch.randn(VOCABULARY, HIDDEN))
    head = made(own_outputs=True, blocks=2)
    head.start(target)
    states = torch.randn(1, 3, HIDDEN)
    for depth in range(3):
        torch.testing.assert_close(head.scores(states, depth, torch.nn.Identity()), states @ target.output.T)

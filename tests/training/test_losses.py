"""Losses are those of the papers, written out one token at a time."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.training.test_chains import KINDS, SIZE, batch_of, embed, head_of
from understudy.heads import TargetFacts
from understudy.training import losses
from understudy.training.chains import shifted, unrolled
from understudy.training.kinds import KINDS as TRAINED
from understudy.training.losses import RECIPES, HeadRecipe, loss_of, training_bytes


@dataclass
class Target:
    """An output head of nine tokens."""

    weight: Tensor
    facts: TargetFacts

    def embed(self, tokens: Tensor) -> Tensor:
        return embed(tokens)

    def score(self, features: Tensor) -> Tensor:
        return features @ self.weight.T

    def score_among(self, features: Tensor, tokens: Tensor) -> Tensor:
        return features @ self.weight[tokens].T

    def first_choices(self, features: Tensor) -> Tensor:
        return self.score(features).argmax(-1)


def target_of() -> Any:
    return Target(torch.randn(9, SIZE, generator=torch.Generator().manual_seed(7)), TargetFacts(SIZE, 9))


def by_hand(head: Any, target: Any, batch: Any, recipe: HeadRecipe) -> float:
    total = 0.0
    guesses = unrolled(head, target.embed, batch, recipe.depths_of(head), lambda guess: shifted(batch.tokens, guess.depth + 2))
    for guess in guesses:
        terms = []
        for row, piece in enumerate(batch.tokens):
            for root in range(1, len(piece)):
                at = root + guess.depth
                if at + 1 >= len(piece) or not batch.counted[row, at + 1]:
                    continue
                state = guess.states[row, root - 1][None, None]
                teacher = batch.features[row, at]
                own = head.scores(state, guess.depth, target.score)[0, 0].log_softmax(-1)
                wanted = target.score(teacher)
                known = torch.arange(9) if head.token_map is None else head.token_map
                soft = -(wanted[known].softmax(-1) * own).sum() if int(wanted.argmax()) in known.tolist() else torch.zeros(())
                place = known.tolist().index(int(piece[at + 1])) if int(piece[at + 1]) in known.tolist() else None
                hard = torch.zeros(()) if place is None else -own[place]
                feature = functional.smooth_l1_loss(head.features(state, guess.depth)[0, 0], teacher)
                terms.append(float(recipe.feature * feature + recipe.soft * soft + recipe.hard * hard))
        total += recipe.decay**guess.depth * sum(terms) / max(len(terms), 1)
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_is_what_its_paper_says(kind: str) -> None:
    head, target = head_of(kind), target_of()
    if head.token_map is not None:
        head.token_map.copy_(torch.arange(9))
    batch = batch_of(len(head.config.taps))
    batch.counted[0, 5:] = False
    batch.counted[1, 3] = False
    recipe = RECIPES[kind]
    with torch.no_grad():
        assert float(loss_of(head, target, batch, recipe)) == pytest.approx(by_hand(head, target, batch, recipe), rel=1e-4)


@pytest.mark.parametrize("weights", [{"soft": 1.0, "hard": 0.0}, {"soft": 0.0, "hard": 1.0}])
def test_a_pruned_vocabulary_leaves_out_what_it_cannot_say(weights: dict[str, float]) -> None:
    torch.manual_seed(0)
    head, target = head_of("eagle3"), target_of()
    pruned = type(head)(replace(head.config, draft_vocab_size=4))
    assert pruned.token_map is not None
    pruned.token_map.copy_(torch.tensor([1, 2, 5, 8]))
    recipe = HeadRecipe(1e-3, depths=2, **weights)
    batch = batch_of(3, length=12)
    with torch.no_grad():
        assert float(loss_of(pruned, target, batch, recipe)) == pytest.approx(by_hand(pruned, target, batch, recipe), rel=1e-4)


def test_first_choices_that_are_known_change_no_loss_and_are_not_found_again() -> None:
    class Knows(Target):
        def first_choices(self, features: Tensor) -> Tensor:
            raise AssertionError("they are known")

    torch.manual_seed(0)
    head, target = head_of("eagle3"), target_of()
    pruned = type(head)(replace(head.config, draft_vocab_size=4))
    assert pruned.token_map is not None
    pruned.token_map.copy_(torch.tensor([1, 2, 5, 8]))
    batch = batch_of(3, length=12)
    choices = target.first_choices(batch.features)
    assert 0 < int((choices[..., None] == pruned.token_map).any(-1).sum()) < choices.numel()
    knowing: Any = Knows(target.weight, target.facts)
    with torch.no_grad():
        found = loss_of(pruned, target, batch, RECIPES["eagle3"])
        assert torch.equal(loss_of(pruned, knowing, replace(batch, choices=choices), RECIPES["eagle3"]), found)


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_of_logits_change_no_loss_and_no_gradient(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for most in (losses.MOST_LOGITS, 9 * 4):
        monkeypatch.setattr(losses, "MOST_LOGITS", most)
        head, target = head_of(kind), target_of()
        loss = 3 * loss_of(head, target, batch_of(len(head.config.taps)), RECIPES[kind])
        loss.backward()  # type: ignore[no-untyped-call]
        found.append([loss.detach(), *(parameter.grad for parameter in head.parameters() if parameter.grad is not None)])
    assert len(found[0]) > 2
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_the_gradient_of_a_soft_loss_is_that_of_torch() -> None:
    """With a vocabulary of 4 of 9 tokens: places whose first choice is none of them count nothing."""
    torch.manual_seed(2)
    token_map, teacher, target = torch.tensor([1, 2, 5, 8]), torch.randn(12, SIZE), target_of()
    logits = [torch.randn(12, 4).requires_grad_() for _ in range(2)]
    logits[1].data = logits[0].data.clone()
    wanted = target.score(teacher)
    known = (wanted.argmax(-1)[:, None] == token_map).any(-1)
    assert 0 < int(known.sum()) < 12
    plain = functional.cross_entropy(logits[0][known], wanted[known][:, token_map].softmax(-1), reduction="sum")
    ours = losses.soft_loss(logits[1], teacher, token_map, target)
    torch.testing.assert_close(ours, plain)
    for loss in (plain, ours):
        (2 * loss).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(logits[1].grad, logits[0].grad)


def test_a_batch_with_nothing_to_guess_has_no_loss() -> None:
    batch = batch_of(1)
    batch.counted[:] = False
    assert float(loss_of(head_of("eagle"), target_of(), batch, RECIPES["eagle"])) == 0.0


def test_every_kind_that_can_be_trained_has_a_recipe() -> None:
    assert set(TRAINED) == set(RECIPES)
    for kind, recipe in RECIPES.items():
        config = head_of(kind).config
        assert training_bytes(config, recipe, False, 4096) > training_bytes(config, recipe, True, 2048) > 0

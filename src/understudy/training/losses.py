"""What heads are trained to do, by their papers. A kind differs from others in a few numbers alone, which are in RECIPES."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from ..heads import DraftHead, HeadConfig
from ..heads.files import head_bytes
from ..plan.demand import RUNTIME
from .chains import Guess, PieceBatch, shifted, unrolled
from .target import MOST_LOGITS, FrozenTarget


@dataclass(frozen=True)
class HeadRecipe:
    """How heads of one kind are trained. The loss at depth i (0: the token after the last accepted one) counts decay^i."""

    # Peak learning rate of a head for a model of hidden size 4096.
    rate: float
    decay: float = 1.0
    # Weight of SmoothL1 between the head's features and the target's own.
    feature: float = 0.0
    # Weight of the cross entropy against the target's distribution.
    soft: float = 0.0
    # Weight of the cross entropy against the token of the text.
    hard: float = 0.0
    # Depths that are trained; 0: as many as the head has heads.
    depths: int = 0
    # What is added to the target's hidden states, evenly from minus this to this.
    noise: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)

    def depths_of(self, head: DraftHead) -> int:
        return self.depths or head.config.heads


RECIPES = {
    # 2401.10774: lambda_k = 0.8^k
    "medusa": HeadRecipe(rate=1e-3, decay=0.8, hard=1.0, betas=(0.9, 0.999)),
    # 2408.00264, whose loss its forerunner (2405.00263) is given too: that paper does not write out its own
    "clover": HeadRecipe(rate=1e-3, decay=0.7, feature=10.0, soft=1.0),
    "clover2": HeadRecipe(rate=1e-3, decay=0.7, feature=10.0, soft=1.0),
    # 2401.15077
    "eagle": HeadRecipe(rate=1e-4, feature=1.0, soft=0.1, depths=1, noise=0.1),
    # 2503.01840: training-time test of seven steps
    "eagle3": HeadRecipe(rate=1e-4, decay=0.8, soft=1.0, depths=7),
}
"""Kind of head -> how it is trained."""


def loss_of(head: DraftHead, target: FrozenTarget, batch: PieceBatch, recipe: HeadRecipe) -> Tensor:
    """The loss [] of a head on a batch, by its kind's recipe: with the true tokens on every chain."""
    total = torch.zeros((), device=batch.tokens.device)

    def true_tokens(guess: Guess) -> Tensor:
        return shifted(batch.tokens, guess.depth + 2)

    for guess in unrolled(head, target.embed, batch, recipe.depths_of(head), true_tokens):
        total = total + recipe.decay**guess.depth * _at(guess, head, target, batch, recipe)
    return total


def _at(guess: Guess, head: DraftHead, target: FrozenTarget, batch: PieceBatch, recipe: HeadRecipe) -> Tensor:
    """The loss [] at one depth."""
    wanted = shifted(batch.counted, guess.depth + 2)
    states = guess.states[wanted]
    teacher = shifted(batch.features, guess.depth + 1)[wanted].float()
    total = states.new_zeros(())
    if not len(states):
        return total
    if recipe.feature:
        own = head.features(guess.states, guess.depth)[wanted].float()
        total = total + recipe.feature * functional.smooth_l1_loss(own, teacher)
    if recipe.soft or recipe.hard:
        rows = [states, teacher, shifted(batch.tokens, guess.depth + 2)[wanted]]
        if batch.choices is not None:
            rows.append(shifted(batch.choices, guess.depth + 1)[wanted])

        def of_logits(states: Tensor, teacher: Tensor, labels: Tensor, choices: Tensor | None = None) -> Tensor:
            logits = head.scores(states[None], guess.depth, target.score)[0].float()
            loss = recipe.hard * hard_loss(logits, labels, head.token_map) if recipe.hard else logits.new_zeros(())
            return loss + recipe.soft * soft_loss(logits, teacher, head.token_map, target, choices) if recipe.soft else loss

        trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
        width = target.facts.vocab_size if batch.choices is None else head.config.draft_vocab_size
        total = total + in_chunks(of_logits, width, rows, trained) / len(states)
    return total


def in_chunks(function: Callable[..., Tensor], width: int, rows: Sequence[Tensor], trained: Sequence[Tensor]) -> Tensor:
    """The sum of `function(*rows)` over chunks of rows, of which each makes so many logits. Only one chunk's logits are in memory.

    Gradients go to the first of `rows` and to what `function` uses of `trained`."""
    size = max(MOST_LOGITS // width, 1)
    if len(rows[0]) <= size:
        return function(*rows)
    total: Tensor = _ChunkedSum.apply(function, size, len(rows), *rows, *trained)  # type: ignore[no-untyped-call]
    return total


class _ChunkedSum(Function):
    """A sum over chunks of rows whose gradient is made along with it, chunk by chunk: nothing of a chunk has to be kept or made
    again."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], size: int, count: int, *tensors: Tensor) -> Tensor:
        rows, trained = tensors[:count], tensors[count:]
        needed = any(ctx.needs_input_grad)
        total = rows[0].new_zeros(())
        of_rows: list[Tensor] = []
        of_trained: list[Tensor | None] = [None] * len(trained)
        for first, *others in zip(*(torch.split(tensor, size) for tensor in rows), strict=True):
            if not needed:
                total += function(first, *others)
                continue
            with torch.enable_grad():
                first = first.detach().requires_grad_()
                part = function(first, *others)
                found = torch.autograd.grad(part, (first, *trained), allow_unused=True)
            total += part.detach()
            of_rows.append(found[0])
            of_trained = [_sum(old, new) for old, new in zip(of_trained, found[1:], strict=True)]
        ctx.count = count
        ctx.gradients = (torch.cat(of_rows), *of_trained) if needed else ()
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        first, *trained = (None if own is None else own * outer[0] for own in ctx.gradients)
        return None, None, None, first, *[None] * (ctx.count - 1), *trained


def _sum(*gradients: Tensor | None) -> Tensor | None:
    """The sum of gradients, of which None is none."""
    there = [one for one in gradients if one is not None]
    return torch.stack(there).sum(0) if there else None


def hard_loss(logits: Tensor, labels: Tensor, token_map: Tensor | None) -> Tensor:
    """The sum of cross entropies against tokens `labels` [m]; those that the head cannot say do not count."""
    if token_map is None:
        return functional.cross_entropy(logits, labels, reduction="sum")
    place = torch.searchsorted(token_map, labels).clamp(max=len(token_map) - 1)
    known = token_map[place] == labels
    return functional.cross_entropy(logits[known], place[known], reduction="sum")


def soft_loss(
    logits: Tensor, teacher: Tensor, token_map: Tensor | None, target: FrozenTarget, choices: Tensor | None = None
) -> Tensor:
    """The sum of cross entropies against the target's own distribution after `teacher` [m, hidden size]. Of a pruned vocabulary,
    the distribution over it, where the target's first choice is in it (EAGLE-3).

    choices: [m], the target's first choices, where they are known: then nothing is scored but what the head can say."""
    if token_map is not None:
        if choices is None:
            choices = target.first_choices(teacher)
        counted = token_map[torch.searchsorted(token_map, choices).clamp(max=len(token_map) - 1)] == choices
        logits, teacher = logits[counted], teacher[counted]
    with torch.no_grad():
        scored = target.score(teacher) if token_map is None else target.score_among(teacher, token_map)
        wanted = scored.softmax(-1, torch.float32)
    total: Tensor = _CrossEntropy.apply(logits, wanted)  # type: ignore[no-untyped-call]
    return total


class _CrossEntropy(Function):
    """The sum over rows of the cross entropy of `logits` against the distributions `wanted`, both [m, n]. Its gradient is
    softmax(logits) - wanted: made along with it, in the memory of the logarithms, it takes half of the passes over numbers."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, wanted: Tensor) -> Tensor:
        said = logits.log_softmax(-1)
        loss: Tensor = -torch.linalg.vecdot(wanted, said).sum()
        if ctx.needs_input_grad[0]:
            ctx.gradient = said.exp_().sub_(wanted)
        return loss

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        gradient: Tensor = ctx.gradient * outer[0]
        return gradient, None


def training_bytes(config: HeadConfig, recipe: HeadRecipe, tied: bool, batch_tokens: int) -> int:
    """About how many bytes training a head takes: weights with gradients and moments, the target's matrices, what a batch's
    gradients are made of, and a chunk of logits."""
    target = config.target
    # In float32, and the output head in bfloat16 too.
    matrices = target.hidden_size * target.vocab_size * (4 * (1 if tied else 2) + 2)
    weights = 4 * head_bytes(config, torch.float32)
    wide = 8 * target.hidden_size + 4 * config.layer.get("intermediate_size", target.hidden_size)
    depths = recipe.depths or config.heads
    activations = batch_tokens * 4 * (len(config.taps) + 2 + depths) * target.hidden_size
    activations += batch_tokens * 4 * wide * (depths if recipe.depths else 1) * max(config.layers, 1)
    return int(RUNTIME + matrices + weights + activations + 4 * 4 * MOST_LOGITS)

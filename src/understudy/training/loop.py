"""The training loop: AdamW with a linear warm-up and decay, and an end where texts kept apart show no gain any more."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from ..errors import NumbersError
from ..heads import DraftHead
from ..kernels.instructions import has
from ..seeds import seeded
from . import Report
from .batches import Batches
from .chains import PieceBatch
from .checkpoints import Checkpoints, Reached
from .losses import HeadRecipe, loss_of
from .target import FrozenTarget

# Of all steps, the share in which the learning rate rises.
WARM_UP = 0.04
# Gradients are scaled down to this norm.
LONGEST_GRADIENT = 1.0
# The share of the peak learning rate at the end.
LEAST_RATE = 0.02
# Instructions either of which makes products of bfloat16 more than twice as fast as those of float32.
MULTIPLIES_BFLOAT16 = ("amx-bf16", "avx512bf16")


@dataclass(frozen=True)
class TrainingLimits:
    """When a training ends, whichever is first. 0: not by that."""

    # Tokens that were learned from, those of each epoch again.
    tokens: int
    # Minutes by the clock, those before a kill included.
    minutes: float = 0.0
    # Measurements without a gain, one after another.
    patience: int = 3
    # Tokens between measurements.
    every: int = 1 << 30

    def progress(self, reached: Reached) -> float:
        """The share that is done, by what is nearest to its end."""
        shares = [reached.tokens / self.tokens] if self.tokens else []
        if self.minutes:
            shares.append(reached.seconds / (60 * self.minutes))
        return min(max(shares, default=0.0), 1.0)


def rate_at(progress: float) -> float:
    """The share of the peak learning rate: a line up, then a line down."""
    return min(progress / WARM_UP, 1.0) if progress < WARM_UP else max((1 - progress) / (1 - WARM_UP), LEAST_RATE)


@dataclass
class Training:
    """One head that learns from `batches` what `target` would say. `rate`: the peak learning rate."""

    head: DraftHead
    target: FrozenTarget
    recipe: HeadRecipe
    batches: Batches
    limits: TrainingLimits
    rate: float
    checkpoints: Checkpoints
    report: Report
    # By piece: the target's first choices after its tokens [n] int32, found once and not in each epoch.
    choices: dict[int, torch.Tensor] = field(default_factory=dict)

    def run(self) -> Reached:
        """Train to the end. The head then has the weights with the lowest loss on the texts kept apart.

        Raises NumbersError where a loss is no number: the last checkpoint stays. Raises StoreError where one cannot be written."""
        self.trained = {name: p for name, p in self.head.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(list(self.trained.values()), lr=self.rate, betas=self.recipe.betas, fused=True)
        reached = self.checkpoints.restore(self.head, self.optimizer, self.trained)
        if not reached.done:
            self.head.train()
            self._learn(reached)
        self.checkpoints.restore_best(self.head)
        self.head.eval()
        return reached

    def _learn(self, reached: Reached) -> None:
        """Steps until the training is done."""
        self._began = time.monotonic() - reached.seconds
        for batch in self._batches_after(reached.step):
            self._step(self._read(batch), reached)
            reached.seconds = time.monotonic() - self._began
            self.report("training", self.limits.progress(reached), 1.0)
            reached.done = self.limits.progress(reached) >= 1
            if reached.done or reached.tokens >= reached.measured + self.limits.every:
                self._measure(reached)
            if reached.done or self.checkpoints.due:
                self.checkpoints.save(self.head, self.optimizer, self.trained, reached)
            if reached.done:
                return

    def _batches_after(self, steps: int) -> Iterator[list[int]]:
        """The batches of all epochs, without those of the first `steps` steps."""
        epoch = 0
        while True:
            for batch in self.batches.epoch(epoch):
                if steps:
                    steps -= 1
                else:
                    yield batch
            epoch += 1

    def _read(self, group: list[int]) -> PieceBatch:
        """The batch of these pieces, with the target's first choices where a head that cannot say all tokens learns from them."""
        batch = self.batches.read(group)
        if self.head.token_map is None or not self.recipe.soft:
            return batch
        choices = torch.zeros_like(batch.tokens)
        for row, piece in enumerate(group):
            length = self.batches.pieces.length(piece)
            if piece not in self.choices:
                # Each piece for itself, so that what is found does not depend on where a run was killed.
                with self._fewer_bits():
                    self.choices[piece] = self.target.first_choices(batch.features[row, :length]).int().cpu()
            choices[row, :length] = self.choices[piece]
        return replace(batch, choices=choices)

    def _step(self, batch: PieceBatch, reached: Reached) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * rate_at(self.limits.progress(reached))
        reached.step += 1
        reached.tokens += int(batch.counted.sum())
        loss = self._loss(self._noisy(batch, reached.step))
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.trained.values(), LONGEST_GRADIENT)
        if not bool(loss.isfinite() & norm.isfinite()):
            raise NumbersError(
                f"The loss of step {reached.step} is no number. {self.checkpoints.kept()} Run this again with a smaller --rate."
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _loss(self, batch: PieceBatch) -> torch.Tensor:
        """The loss [] of a batch."""
        with self._fewer_bits():
            return loss_of(self.head, self.target, batch, self.recipe)

    def _fewer_bits(self) -> torch.autocast:
        """A processor that multiplies matrices of bfloat16 does so meanwhile: weights, their gradients and all sums stay in
        float32."""
        where = self.batches.device
        return torch.autocast(where, torch.bfloat16, enabled=where == "cpu" and any(map(has, MULTIPLIES_BFLOAT16)))

    def _noisy(self, batch: PieceBatch, step: int) -> PieceBatch:
        """The batch with the recipe's noise on what the head reads; it depends on the seed and the step alone."""
        if not self.recipe.noise:
            return batch
        generator = seeded((self.batches.seed + 1) * 1_000_003 + step)
        noise = (2 * torch.rand(batch.hidden.shape, generator=generator) - 1) * self.recipe.noise
        return replace(batch, hidden=batch.hidden + noise.to(batch.hidden.device))

    def _measure(self, reached: Reached) -> None:
        """The loss on the texts kept apart: the best weights are kept, and too many losses without a gain are the end."""
        loss = self.held_out_loss()
        reached.measured = reached.tokens
        gain = loss < reached.best
        reached.since_best = 0 if gain else reached.since_best + 1
        if gain:
            reached.best = loss
            reached.best_step = reached.step
            self.checkpoints.save_best(self.head, reached)
        if reached.since_best >= self.limits.patience > 0:
            reached.done = True
        self.report(f"step {reached.step}, {reached.tokens:,} tokens: loss {loss:.4f} on texts kept apart", 0, 0)

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """The mean loss of the batches of texts kept apart, each by its tokens. NumbersError where it is no number."""
        self.head.eval()
        losses, counts = [], []
        for group in self.batches.measured():
            batch = self._read(group)
            losses.append(float(self._loss(batch)))
            counts.append(int(batch.counted.sum()))
        self.head.train()
        loss = math.fsum(loss * count for loss, count in zip(losses, counts, strict=True)) / max(sum(counts), 1)
        if not math.isfinite(loss):
            raise NumbersError(f"The loss on texts kept apart is no number. {self.checkpoints.kept()} Try a smaller --rate.")
        return loss

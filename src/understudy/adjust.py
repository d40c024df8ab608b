"""What biases and penalties do to logits, before the temperature and all filters.

A node of a tree is scored as the text would be that ends with it: the tokens of the text and of the node's own path count,
those of its siblings do not. So a token is the same whatever was drafted around it. In the order of transformers and vLLM:

1. `logit_bias` is added.
2. `repetition_penalty`: logits of tokens of the prompt and of what was generated are divided by it where they are positive, and
   multiplied where they are negative (Keskar et al., arXiv 1909.05858; RepetitionPenaltyLogitsProcessor of transformers).
3. `frequency_penalty` times the number of times that a token was generated is taken off, then `presence_penalty` if it was
   generated at all; the prompt does not count (the OpenAI API; vLLM's apply_penalties).
4. `min_tokens`: minus infinity is added to tokens that would end the text too early (MinNewTokensLengthLogitsProcessor).
5. `constraint`: minus infinity is added to tokens that the grammar does not allow there.
6. `reasoning_budget`: where it is spent, the same is done to all but the next token of the mark that ends the reasoning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import UsageError
from .params import SamplingParams
from .sequence import TokenSequence

# Logits [k, vocab], and the number of the first of these rows, to what the choice is made from.
Adjust = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Adjustment:
    """The biases and penalties of `sequence` at several places after its text."""

    sequence: TokenSequence
    # For each place the tokens between the end of the text and it.
    paths: Sequence[Sequence[int]]

    @classmethod
    def of(cls, sequence: TokenSequence, paths: Callable[[], Sequence[Sequence[int]]]) -> Adjustment | None:
        """The adjustment of `sequence` after `paths()`; None where it asks for none."""
        held = sequence.grammar is not None or sequence.reasoning is not None
        return cls(sequence, paths()) if held or sequence.params.adjusts else None

    def after(self, first: int) -> Adjustment:
        """The same, without the first so many places."""
        return Adjustment(self.sequence, self.paths[first:])

    def __call__(self, logits: Tensor, first: int) -> Tensor:
        """[k, vocab] float32: `logits` [k, vocab] after places `first` to `first + k`, adjusted. `logits` stay as they are."""
        paths = self.paths[first : first + len(logits)]
        scores = logits.to(torch.float32, copy=True)
        self._bias(scores)
        if self.sequence.params.penalises:
            self._penalise(scores, paths)
        self._keep_going(scores, paths)
        self._constrain(scores, paths)
        self._end_reasoning(scores, paths)
        return scores

    def _bias(self, scores: Tensor) -> None:
        biases = self.sequence.params.biases
        if biases:
            ids = torch.tensor([token for token, _ in biases], device=scores.device)
            scores[:, ids] += torch.tensor([bias for _, bias in biases], device=scores.device)

    def _penalise(self, scores: Tensor, paths: Sequence[Sequence[int]]) -> None:
        params = self.sequence.params
        ids, counts, seen = self._counts(paths)
        columns = torch.from_numpy(ids).to(scores.device)
        count = torch.from_numpy(counts).to(scores.device)
        found = scores[:, columns]
        if params.repetition_penalty != 1:
            # As a tensor: a device divides by a number by multiplying by its inverse, which has other bits.
            penalty = torch.tensor([params.repetition_penalty], device=scores.device)
            repeated = torch.where(found < 0, found * penalty, found / penalty)
            found = torch.where(torch.from_numpy(seen).to(scores.device), repeated, found)
        found = found - count * params.frequency_penalty
        scores[:, columns] = found - (count > 0) * params.presence_penalty

    def _counts(self, paths: Sequence[Sequence[int]]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Tokens [c] of the text and the paths, how often each was generated [k, c], and whether it is there at all [k, c]."""
        ids, generated = self.sequence.tally()
        place = {token: i for i, token in enumerate(ids.tolist())}
        known = len(place)
        for path in paths:
            for token in path:
                place.setdefault(token, len(place))
        counts = np.zeros((len(paths), len(place)), np.float32)
        counts[:, :known] = generated
        for row, path in zip(counts, paths, strict=True):
            for token in path:
                row[place[token]] += 1
        seen = counts > 0
        seen[:, :known] = True
        return np.fromiter(place, np.int64, len(place)), counts, seen

    def _keep_going(self, scores: Tensor, paths: Sequence[Sequence[int]]) -> None:
        """No token that ends the text is chosen where too few were generated. A logit that is no number stays none."""
        missing = self.sequence.params.min_tokens - self.sequence.produced
        if missing <= 0:
            return
        stops = torch.tensor(sorted(self.sequence.stop_ids), dtype=torch.int64, device=scores.device)
        for row, path in zip(scores, paths, strict=True):
            if len(path) < missing:
                row[stops] -= torch.inf

    def _constrain(self, scores: Tensor, paths: Sequence[Sequence[int]]) -> None:
        """Only what the grammar allows is chosen. A logit that is no number stays none."""
        grammar = self.sequence.grammar
        if grammar is None:
            return
        for row, path in zip(scores, paths, strict=True):
            allowed = torch.from_numpy(grammar.allowed(path)).to(row.device)
            row += torch.where(allowed, 0.0, -torch.inf)

    def _end_reasoning(self, scores: Tensor, paths: Sequence[Sequence[int]]) -> None:
        """A token that is forced is chosen, unless the grammar does not allow it. A logit that is no number stays none."""
        reasoning = self.sequence.reasoning
        if reasoning is None:
            return
        reasoning.follow(self.sequence.tokens[self.sequence.prompt_length :])
        for row, path in zip(scores, paths, strict=True):
            token = reasoning.forced(path)
            if token is not None and row[token] > -torch.inf:
                row[:token] -= torch.inf
                row[token + 1 :] -= torch.inf


def check_biases(params: SamplingParams, vocabulary: int) -> None:
    """Raise UsageError for a bias of a token that is not in the vocabulary."""
    if wrong := [token for token, _ in params.biases if not 0 <= token < vocabulary]:
        raise UsageError(f"logit_bias names token id {wrong[0]}, which is not in this model's vocabulary of {vocabulary}.")

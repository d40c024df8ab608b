"""The loop: draft a tree for every row, verify all of them in one pass over the slow weights, keep what the exact model chose."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from .cache import Cache
from .drafters import Drafter
from .sampling import choose
from .sequence import TokenSequence
from .tree import Nodes, TokenTree
from .verify import accept

Settle = Callable[[Tensor, int], Tensor]
Verify = Callable[[Nodes, Tensor, Settle], Tensor]
NONE = torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class Step:
    """What one pass gave one row: its new tokens, how many nodes were drafted for it and how many of them accepted."""

    row: TokenSequence
    tokens: list[int]
    drafted: int
    accepted: int


@dataclass
class Clock:
    """Where the time of all passes went, in seconds; verify includes waiting for weights."""

    draft: float = 0.0
    verify: float = 0.0
    passes: int = 0


class Engine:
    """Runs rows together; a row may join or leave between any two passes.

    `verify(nodes, wanted, settle)` is the exact model: `settle` is given its logits of `wanted`, some [k, vocab] at a time and the
    number of the first; what it returns comes back joined. A pass has at most `most` nodes: longer prompts take several."""

    def __init__(self, verify: Verify, cache: Cache, drafter: Drafter, most: int = 1 << 40):
        self.verify, self.cache, self.drafter, self.most = verify, cache, drafter, most
        self.rows: list[TokenSequence] = []
        self.clock = Clock()
        self.kept: dict[int, list[int]] = {}

    def admit(self, row: TokenSequence) -> TokenSequence:
        """Let `row` take part from the next pass on. What its cache row already holds of its tokens is not read again."""
        assert row.tokens and all(row.row != other.row for other in self.rows), f"row {row.row} is empty or taken"
        row.prompt_length = len(row.tokens)
        row.limit = row.limit or row.params.max_new_tokens
        known = self.kept.pop(row.row, [])
        common = common_prefix(known, row.tokens[:-1])
        self.cache.rewind(row.row, min(common, self.cache.lengths[row.row]))
        self.drafter.rewind(row, self.cache.lengths[row.row])
        self.rows.append(row)
        return row

    def release(self, row: TokenSequence, reason: str = "cancelled") -> None:
        """Take `row` out; its tokens stay in the cache for a later row with the same beginning."""
        row.finish_reason = row.finish_reason or reason
        self.rows = [other for other in self.rows if other is not row]
        self.cache.rewind(row.row, min(self.cache.lengths[row.row], len(row.tokens)))
        self.kept[row.row] = row.tokens[: self.cache.lengths[row.row]]

    @torch.inference_mode()
    def step(self) -> list[Step]:
        """One pass for all rows (more for long prompts). An exception leaves every row's tokens as they were before."""
        start = time.perf_counter()
        fresh = [row for row in self.rows if self.cache.lengths[row.row] < len(row.tokens) - 1 or row.produced == 0]
        going = [row for row in self.rows if row not in fresh]
        trees = {id(row): tree for row, tree in zip(going, self.drafter.draft(going), strict=True)}
        drafted = time.perf_counter()
        self._read(fresh, self.most - sum(map(len, trees.values())))
        trees |= {id(row): TokenTree.chain(row.tokens[self.cache.lengths[row.row] :]) for row in fresh}
        choices = self._choices([(row, trees[id(row)]) for row in self.rows], fresh)
        self.clock.draft += drafted - start
        self.clock.verify += time.perf_counter() - drafted
        self.clock.passes += 1
        steps = [self._advance(row, trees[id(row)], choices[id(row)], row in fresh) for row in list(self.rows)]
        tokens, seconds = sum(len(step.tokens) for step in steps), time.perf_counter() - start
        self.drafter.record_round(tokens, seconds, prefill=bool(fresh))
        return steps

    def _read(self, fresh: list[TokenSequence], room: int) -> None:
        """Passes over the beginnings of prompts, until what is left of all of them together is `room` nodes at most."""
        assert room >= len(fresh), f"{len(fresh)} new rows in a pass with room for {room} nodes"
        while sum(len(row.tokens) - self.cache.lengths[row.row] for row in fresh) > room:
            left, chains = self.most, []
            for row in fresh:
                length = self.cache.lengths[row.row]
                tokens = row.tokens[length : min(length + left, len(row.tokens) - 1)]
                left -= len(tokens)
                chains += [(row, TokenTree.chain(tokens))] if tokens else []
            nodes = [Nodes.of(chain, row.row, self.cache.lengths[row.row]) for row, chain in chains]
            self.verify(Nodes.join(nodes), NONE, lambda logits, first: NONE)
            self.clock.passes += 1
            for row, chain in chains:
                self.cache.keep(row.row, torch.arange(len(chain)))

    def _choices(self, work: list[tuple[TokenSequence, TokenTree]], fresh: list[TokenSequence]) -> dict[int, Tensor]:
        """The exact model's token after each node of each row (of a prompt: after its last token only)."""
        nodes, wanted, owners, start = [], [], [], 0
        for row, tree in work:
            nodes.append(Nodes.of(tree, row.row, self.cache.lengths[row.row]))
            wanted.append(torch.arange(start + (len(tree) - 1 if row in fresh else 0), start + len(tree)))
            owners += [row] * len(wanted[-1])
            start += len(tree)
        flat, want = Nodes.join(nodes), torch.cat(wanted)

        def settle(logits: Tensor, first: int) -> Tensor:
            found, at = [], 0
            for _, group in groupby(owners[first : first + len(logits)], key=id):
                several = list(group)
                part = slice(first + at, first + at + len(several))
                after = (flat.positions[want[part]] + 1).to(logits.device)
                found.append(choose(logits[at : at + len(several)], several[0].params, after).cpu())
                at += len(several)
            return torch.cat(found)

        parts = torch.split(self.verify(flat, want, settle), [len(some) for some in wanted])
        return {id(row): part for (row, _), part in zip(work, parts, strict=True)}

    def _advance(self, row: TokenSequence, tree: TokenTree, choices: Tensor, fresh: bool) -> Step:
        if fresh:
            path, bonus = torch.arange(len(tree)), int(choices[-1])
        else:
            path, bonus = accept(tree, choices)
            self.drafter.observe(row, tree, path, choices)
        self.cache.keep(row.row, path)
        new = [*([] if fresh else tree.tokens[path[1:]].tolist()), bonus]
        taken = self._take(row, new)
        accepted = 0 if fresh else min(len(path) - 1, len(taken))
        if row.finish_reason:
            self.release(row)
        return Step(row, taken, 0 if fresh else len(tree) - 1, accepted)

    def _take(self, row: TokenSequence, tokens: list[int]) -> list[int]:
        """Append tokens one by one, exactly as plain decoding would, until one of them ends the row."""
        for count, token in enumerate(tokens, 1):
            row.tokens.append(token)
            if token in row.stop_ids or row.stops(token):
                row.finish_reason = "stop"
            elif row.remaining <= 0:
                row.finish_reason = "length"
            if row.finish_reason:
                return tokens[:count]
        return tokens


def common_prefix(first: Iterable[int], second: Iterable[int]) -> int:
    """How many tokens two sequences share from their start."""
    count = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        count += 1
    return count

"""What stock blocks are given and give in a level, so that others can be compared with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.attention import AttentionSpec
from .block_structure import BlockModules


@dataclass(frozen=True)
class MlpSample:
    """What a stock MLP was given and gave: [..., hidden size]."""

    given: Tensor
    gave: Tensor


@dataclass(frozen=True)
class Sample:
    """What a stock block was given in a level, had after its attention and after its MLP, and gave: hidden states [1, n, hidden
    size]. The last two are one where it has no further part."""

    given: Tensor
    middle: Tensor
    ended: Tensor
    gave: Tensor
    # what else it was given, for its further part: [1, n, numbers]
    beside: Tensor | None
    # cosines and sines [1, n, turned]
    turns: tuple[Tensor, Tensor]
    # its number, and how it attended; None: it did not
    layer: int
    spec: AttentionSpec | None

    @property
    def second(self) -> MlpSample:
        """What its second half was given and gave."""
        return MlpSample(self.middle, self.ended)


class BlockSamples:
    """Inside, levels leave `specs` by layer, and the stock `blocks` and `mlps` what they were given and gave. Blocks are told that
    their nodes stand `further` on than they do, while they are turned as they are: what else depends on positions is seen so."""

    def __init__(self, blocks: Mapping[nn.Module, BlockModules], mlps: Iterable[nn.Module] = (), further: int = 0) -> None:
        self.blocks = blocks
        self.further = further
        self.mlps = tuple(mlps)
        self.specs: dict[int, AttentionSpec] = {}
        self.mlp_samples: dict[nn.Module, MlpSample] = {}
        self._middles: dict[nn.Module, Tensor] = {}
        self._ends: dict[nn.Module, Tensor] = {}
        self._beside: dict[nn.Module, Tensor] = {}
        self._seen: list[tuple[nn.Module, Tensor, Tensor, tuple[Tensor, Tensor]]] = []
        # What each of those gave, as it was then.
        self._then: list[Tensor] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> BlockSamples:
        for block, parts in self.blocks.items():
            self._hooks.append(block.register_forward_pre_hook(self._move, with_kwargs=True))
            self._hooks.append(block.register_forward_hook(self._keep, with_kwargs=True))
            self._hooks.append(parts.second.register_forward_pre_hook(self._on_the_way(block, self._middles), with_kwargs=True))
            if parts.further is not None:
                hook = self._on_the_way(block, self._ends)
                self._hooks.append(parts.further.first.register_forward_pre_hook(hook, with_kwargs=True))
        self._hooks += [mlp.register_forward_hook(self._keep_mlp) for mlp in self.mlps]
        return self

    def __exit__(self, *failure: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _move(self, block: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        positions = named.get("position_ids")
        moved = {"position_ids": positions + self.further} if isinstance(positions, Tensor) else {}
        return given, {**named, **moved}

    def _on_the_way(self, block: nn.Module, kept: dict[nn.Module, Tensor]) -> Any:
        def keep(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            hidden = given[0] if given else named.get("hidden_states")
            if isinstance(hidden, Tensor):
                kept[block] = hidden.clone()

        return keep

    def _keep(self, block: nn.Module, given: tuple[Any, ...], named: dict[str, Any], gave: Any) -> None:
        hidden = given[0] if given else named.get("hidden_states")
        turns = turns_of(named)
        if isinstance(gave, Tensor) and isinstance(hidden, Tensor) and turns is not None:
            self._seen.append((block, hidden, gave, turns))
            self._then.append(gave.clone())
            if (beside := given_beside(given, named)) is not None:
                self._beside[block] = beside.clone()

    def _keep_mlp(self, mlp: nn.Module, given: tuple[Any, ...], gave: Any) -> None:
        if given and isinstance(given[0], Tensor) and isinstance(gave, Tensor) and given[0].shape == gave.shape and len(gave):
            self.mlp_samples[mlp] = MlpSample(given[0].clone(), gave.clone())

    @property
    def handed_on(self) -> set[tuple[nn.Module, nn.Module]]:
        """Pairs of blocks of which the second was given just what the first had given, and the same turns."""
        pairs = list(zip(self._seen, self._seen[1:], self._then, strict=False))
        return {
            (first, second)
            for (first, _, gave, turns), (second, given, _, others), then in pairs
            if given is gave and torch.equal(given, then) and all(a is b for a, b in zip(turns, others, strict=True))
        }

    @property
    def samples(self) -> list[tuple[nn.Module, Sample]]:
        """Each block that can be compared, with what it was given and gave, in the order in which they ran."""
        return [
            (block, self._sample(block, given, then, turns))
            for (block, given, _, turns), then in zip(self._seen, self._then, strict=True)
            if block in self._middles
        ]

    def _sample(self, block: nn.Module, given: Tensor, gave: Tensor, turns: tuple[Tensor, Tensor]) -> Sample:
        layer = self.blocks[block].layer
        between = self._middles[block], self._ends.get(block, gave)
        return Sample(given, *between, gave, self._beside.get(block), turns, layer, self.specs.get(layer))


def turns_of(named: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Cosines and sines [1, n, turned] of the positions that a block is told; None: it is told none, or otherwise."""
    found = named.get("position_embeddings")
    if isinstance(found, Tensor) and found.is_complex():
        # one number for two that are turned together
        return torch.cat([found.real] * 2, -1), torch.cat([found.imag] * 2, -1)
    return found if isinstance(found, tuple) and len(found) == 2 else None


def given_beside(given: tuple[Any, ...], named: dict[str, Any]) -> Tensor | None:
    """What a block is `given`, or by a name, for its further part; None: nothing."""
    found = given[1] if len(given) > 1 else named.get("per_layer_input")
    return found if isinstance(found, Tensor) else None

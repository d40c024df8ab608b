"""Checkpoints of a training: all that a step depends on, in one file that appears whole, and the best weights so far in another."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError, StoreError, UsageError, quoted
from ..heads import DraftHead
from ..weights.writing import explained

CHECKPOINT = "checkpoint.safetensors"
BEST = "best.safetensors"
OTHERWISE = "choose another directory with -o"
MEND = "Delete it to begin anew."
# Seconds between checkpoints, and how many times as long as writing one takes.
EVERY = 30.0
RARELY = 20.0
# What AdamW keeps of each weight that had a gradient, and how many it had: none where a batch had nothing for a weight to learn.
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass
class Reached:
    """How far a training is."""

    step: int = 0
    # Tokens learned from, and those at the last measurement.
    tokens: int = 0
    measured: int = 0
    seconds: float = 0.0
    # The lowest loss on texts kept apart (infinite: none yet), its step, and measurements since.
    best: float = math.inf
    best_step: int = 0
    since_best: int = 0
    done: bool = False


class Checkpoints:
    """The checkpoints in `directory`, of a training that `subject` describes. UsageError where there are those of another one."""

    def __init__(self, directory: Path, subject: Mapping[str, Any]):
        self.directory = directory
        # Through JSON, as it is read back.
        self.subject = json.loads(json.dumps(subject))
        self.last = time.monotonic()
        self.took = 0.0
        self.step = 0
        with explained(directory, OTHERWISE):
            directory.mkdir(parents=True, exist_ok=True)
        if (found := self._metadata()) is not None:
            there = json.loads(found["subject"])
            if other := [name for name in {**there, **self.subject} if there.get(name) != self.subject.get(name)]:
                raise UsageError(
                    f"{directory} holds a training with another {other[0]}: finish that one, delete it, or {OTHERWISE}."
                )

    def _metadata(self) -> dict[str, str] | None:
        """What a checkpoint that is there says of itself. Raises CheckpointError for one that cannot be read."""
        path = self.directory / CHECKPOINT
        if not path.exists():
            return None
        with quoted(CheckpointError, f"{path} cannot be read", MEND, SafetensorError), safe_open(path, "pt") as file:
            found: dict[str, str] = file.metadata()
        return found

    @property
    def due(self) -> bool:
        """Is it time for another checkpoint?"""
        return time.monotonic() - self.last > max(EVERY, RARELY * self.took)

    def save(
        self, head: DraftHead, optimizer: torch.optim.Optimizer, trained: Mapping[str, Tensor], reached: Reached
    ) -> None:
        """Write a checkpoint in the place of the last one. Raises StoreError where that is not possible."""
        began = time.monotonic()
        tensors = {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
        for name, weight in trained.items():
            tensors |= {f"{moment}.{name}": value for moment, value in optimizer.state[weight].items() if moment in MOMENTS}
        self._write(CHECKPOINT, tensors, {"subject": json.dumps(self.subject), "reached": json.dumps(asdict(reached))})
        self.step = reached.step
        self.last = time.monotonic()
        self.took = self.last - began

    def save_best(self, head: DraftHead, reached: Reached) -> None:
        """Keep the weights of `head` as the best so far."""
        self._write(BEST, dict(head.state_dict()), {"step": str(reached.step)})

    def _write(self, name: str, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
        partial = self.directory / f"{name}.partial"
        failed = f"The checkpoint cannot be written to {self.directory}"
        with quoted(StoreError, failed, "Free some space, then run this again.", SafetensorError):
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, partial, metadata)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(self.directory / name)

    def restore(self, head: DraftHead, optimizer: torch.optim.Optimizer, trained: Mapping[str, Tensor]) -> Reached:
        """Put the last checkpoint in head and optimizer; nothing where there is none. Raises CheckpointError for a damaged one."""
        found = self._metadata()
        if found is None:
            return Reached()
        reached = Reached(**json.loads(found["reached"]))
        tensors = self._tensors(CHECKPOINT)
        head.load_state_dict({name: tensors[f"head.{name}"] for name in head.state_dict()})
        for name, weight in trained.items():
            kept = {moment: f"{moment}.{name}" for moment in MOMENTS if f"{moment}.{name}" in tensors}
            optimizer.state[weight] = {moment: tensors[key].to(weight.device) for moment, key in kept.items()}
        self.step = reached.step
        return reached

    def restore_best(self, head: DraftHead) -> None:
        """Put the best weights in `head`."""
        head.load_state_dict(self._tensors(BEST))

    def _tensors(self, name: str) -> dict[str, Tensor]:
        path = self.directory / name
        with quoted(CheckpointError, f"{path} cannot be read", MEND, SafetensorError), safe_open(path, "pt") as file:
            return {str(key): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118

    def kept(self) -> str:
        """Which checkpoint stays, in a sentence."""
        return f"The checkpoint of step {self.step} stays in {self.directory}." if self.step else "There is no checkpoint yet."

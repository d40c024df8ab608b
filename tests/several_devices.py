"""What tests of several devices share: a small model, a machine with four NUMA nodes, simulated devices, and models on them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import fake_device
from tests.fake_device import FakeDevice, RowDevice
from tests.tiny import save
from understudy import LLM, SamplingParams
from understudy.devices import DEVICES
from understudy.weights import entries

PROMPTS = [[5, 99, 5, 12, 80, 5, 99, 5], [7, 8, 9]]
GREEDY = SamplingParams(max_new_tokens=6, ignore_eos=True)
SMALL = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3}
# Bytes of a part, so that Linears have several.
PART = 16384
ALLOWED = frozenset({0})


def prepared(path: Path) -> Path:
    """A directory with a model in bfloat16 whose Linears have 1 to 3 parts: `raw`, and `delta`, stored as residuals of a copy."""
    save(path / "model", "qwen2", torch.bfloat16, **SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entries, "PART_BYTES", PART)
        LLM.prepare(path / "model", codec="delta", output=path / "delta")
        LLM.prepare(path / "model", codec="raw", output=path / "raw")
    return path


def four_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this a machine with four NUMA nodes."""
    monkeypatch.setattr("understudy.devices.processor.processors_by_node", lambda: dict.fromkeys(range(4), ALLOWED))


def simulated(monkeypatch: pytest.MonkeyPatch, by_rows: bool = False) -> list[FakeDevice]:
    """Make devices fake:0, fake:1 and so on, without Triton; returns all that were opened. `by_rows`: they multiply row by row, so
    that a pass is one forward."""
    made: list[FakeDevice] = []

    def numbered(*, number: int = 0) -> FakeDevice:
        seed, name = len(made), f"fake:{number}"
        made.append(RowDevice(seed=seed, name=name) if by_rows else FakeDevice(seed=seed, triton=False, name=name))
        return made[-1]

    monkeypatch.setattr(fake_device, "numbered", numbered, raising=False)
    monkeypatch.setitem(DEVICES, "fake", "tests.fake_device:numbered")
    return made


def llm(model: Path, devices: str | None, split: str = "blocks", **options: Any) -> LLM:
    """A model on `devices`; None: on one processor."""
    where = {} if devices is None else {"devices": devices, "split": split}
    return LLM(model, **{"memory": "3GiB", "resident": "none", "context": 128, "rows": 2, **where, **options})

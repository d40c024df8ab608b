"""The codec that is faster, from what was measured."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from understudy.plan import codec
from understudy.plan.codec import faster, speeds


def test_a_slow_link_wants_few_bytes_and_slow_processors_want_little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "speeds", lambda quantizer: (1e-9, 2e-9))
    assert faster(0.2e9, torch.bfloat16, "int4") == "delta"
    assert faster(100e9, torch.bfloat16, "int4") == "raw"
    monkeypatch.setattr(codec, "speeds", lambda quantizer: (1e-9, 1e-9))
    assert faster(100e9, torch.bfloat16, "int4") == "delta", "on equal terms the one that takes half the room"


@pytest.mark.parametrize(
    ("dtype", "quantizer"), [(torch.float32, "int4"), (torch.bfloat16, "int8"), (torch.float16, "int4")]
)
def test_what_delta_cannot_store_is_raw(dtype: torch.dtype, quantizer: str) -> None:
    assert faster(1e6, dtype, quantizer) == "raw"


def test_speeds_are_measured() -> None:
    multiply, both = speeds("int4")
    assert 0 < multiply < both < 1e-6


@pytest.mark.parametrize(("triton", "wanted"), [(True, "delta"), (False, "raw")])
def test_a_device_decodes_if_it_has_triton(triton: bool, wanted: str) -> None:
    device: Any = SimpleNamespace(triton=triton)
    assert faster(1e9, torch.bfloat16, "int4", device) == wanted
    assert faster(1e9, torch.float32, "int4", device) == "raw"

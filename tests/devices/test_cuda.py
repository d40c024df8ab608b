"""Why CUDA cannot be used is said in one line; what torch reports is imitated here."""

from typing import Any

import pytest
import torch

from understudy import LLM
from understudy.devices.cuda import open_cuda
from understudy.errors import UsageError


class Torch:
    """What torch.cuda would be."""

    def __init__(self, error: Exception | None = None, capability: tuple[int, int] = (9, 0)):
        self.error, self.capability = error, capability

    def init(self) -> None:
        if self.error is not None:
            raise self.error

    def get_device_capability(self) -> tuple[int, int]:
        return self.capability

    def get_device_name(self) -> str:
        return "Tesla T4"


@pytest.mark.parametrize(
    ("cuda", "said"),
    [
        (Torch(AssertionError("Torch not compiled with CUDA enabled")), "Torch not compiled with CUDA enabled"),
        (Torch(RuntimeError("Found no NVIDIA driver on your system. Please check\nmore")), "Found no NVIDIA driver"),
        (Torch(RuntimeError("The NVIDIA driver on your system is too old (found version 11040).")), "driver on your system is"),
        (Torch(capability=(7, 5)), "Tesla T4 has compute capability 7.5, 8.0 is needed"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said_in_one_line(cuda: Any, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        open_cuda(cuda)
    message = str(raised.value)
    assert said in message and message.endswith("use --device cpu.") and "\n" not in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_loaded() -> None:
    with pytest.raises(UsageError, match="--device cuda: there is no usable GPU or driver here"):
        LLM(device="cuda")

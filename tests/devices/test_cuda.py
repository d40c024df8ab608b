"""Why CUDA cannot be used is said in one line; what torch reports is imitated here."""

import re
from typing import Any

import pytest
import torch

from understudy import LLM
from understudy.codecs import codec
from understudy.devices.cuda import kernels_run, open_cuda
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


def test_where_kernels_cannot_run_torch_does_their_work_and_says_so() -> None:
    driver = "Triton cannot run its kernels: the driver does not know this kind of code"
    without = open_cuda(Torch(), lambda: driver)
    assert not without.triton and without.graphs is None and without.note.startswith(f"{driver}: ") and "slower" in without.note
    why = r"need Triton on cuda, and Triton cannot run its kernels: the driver .*--codec raw"
    assert re.search(why, without.refusal(codec("delta"))) and not without.refusal(codec("raw"))
    with_all = open_cuda(Torch(), lambda: "")
    assert with_all.triton and with_all.graphs is not None and not with_all.note
    assert not with_all.refusal(codec("delta"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_kernel_that_cannot_run_gives_its_reason() -> None:
    said = kernels_run()
    assert said.startswith("Triton ") and "\n" not in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_loaded() -> None:
    with pytest.raises(UsageError, match="--device cuda: there is no usable GPU or driver here"):
        LLM(device="cuda")

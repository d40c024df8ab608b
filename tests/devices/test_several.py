"""What --devices may name: two or more of one kind, each once; what is not there is said in one line."""

import threading
import time
from typing import Any

import pytest

from tests.devices.test_cuda import Torch
from tests.fake_device import FakeDevice
from understudy.devices import DEVICES
from understudy.devices.cuda import CudaDevice, open_cuda
from understudy.devices.elsewhere import devices_of
from understudy.devices.processor import Processor
from understudy.devices.several import ASSUMED, hop_between, links_together, open_devices, several
from understudy.errors import UsageError
from understudy.options import Options
from understudy.plan.other_machine import OtherMachine
from understudy.plan.splits import Hop


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cuda:0", "two or more, such as cuda:0,cuda:1, got 'cuda:0': one alone is for --device"),
        ("cuda:1,cuda:0,cuda:1", "--devices names cuda:1 twice"),
        ("cuda:0,cpu:0", "cuda and cpu differ in kind"),
        ("cuda,cuda:1", "takes numbered devices, such as cuda:0,cuda:1, got 'cuda'"),
        ("cuda:-1,cuda:0", "takes numbered devices"),
        ("cdua:0,cuda:1", "No device 'cdua'. Did you mean 'cuda'"),
        ("", "No device ''"),
    ],
)
def test_what_devices_cannot_be_is_said_before_any_is_opened(text: str, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        several(text)
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_options_that_contradict_several_devices() -> None:
    for given, said in (
        ({"devices": "cpu:0,cpu:1", "device": "cpu"}, "--devices cpu:0,cpu:1 contradicts --device cpu"),
        ({"devices": "cpu:0,cpu:1", "resident": "whole"}, "--resident whole is for one device"),
        ({"devices": "cpu:0"}, "two or more"),
    ):
        with pytest.raises(UsageError, match=said):
            Options.of(given, {})


def test_a_node_that_is_not_there_and_host_memory_that_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("understudy.devices.processor.processors_by_node", lambda: {0: frozenset({0}), 1: frozenset({0})})
    opened = open_devices("cpu:1,cpu:0")
    assert [device.name for device in opened] == ["cpu:1", "cpu:0"] and all(isinstance(device, Processor) for device in opened)
    with pytest.raises(UsageError, match=r"^cpu:7 is not there: this process may run on cpu:0, cpu:1 \(NUMA nodes"):
        open_devices("cpu:0,cpu:7")
    with pytest.raises(UsageError, match="--host-memory is for an accelerator"):
        open_devices("cpu:0,cpu:1", host_memory="4GiB")
    monkeypatch.setitem(DEVICES, "fake", "tests.fake_device:without_triton")
    with pytest.raises(UsageError, match="there is only one fake device"):
        open_devices("fake:0,fake:1")


class Gpus(Torch):
    """Two GPUs, as torch.cuda tells of them: number 1 is old."""

    def __init__(self) -> None:
        super().__init__()
        self.current = [0]

    def device_count(self) -> int:
        return 2

    def get_device_capability(self) -> tuple[int, int]:
        return (9, 0) if self.current[-1] == 0 else (7, 5)

    def device(self, number: int) -> Any:
        gpus = self

        class Block:
            def __enter__(self) -> None:
                gpus.current.append(number)

            def __exit__(self, *_: Any) -> None:
                gpus.current.pop()

        return Block()


def test_each_gpu_is_looked_at_by_itself() -> None:
    gpus = Gpus()
    first = open_cuda(gpus, lambda: "", number=0)
    assert isinstance(first, CudaDevice) and first.name == first.where == "cuda:0"
    with first.at_work():
        assert gpus.current == [0, 0]
    with pytest.raises(UsageError, match=r"cuda:1: Tesla T4 has compute capability 7.5"):
        open_cuda(gpus, lambda: "", number=1)
    with pytest.raises(UsageError, match="cuda:2 is not there: this machine has 2 GPUs"):
        open_cuda(gpus, lambda: "", number=2)
    assert gpus.current == [0]


def test_links_are_measured_while_all_are_busy() -> None:
    """A disk is shared by processors; accelerators measure side by side."""
    assert links_together([Processor(1), Processor(1)], 3e9) == [1.5e9, 1.5e9]
    both = threading.Barrier(2, timeout=60)

    class Waiting(FakeDevice):
        def link_bytes_per_second(self, disk: float) -> float:
            both.wait()
            return 5e9

    assert links_together([Waiting(triton=False), Waiting(triton=False)], 3e9) == [5e9, 5e9]


def test_hops_are_measured_there_and_back() -> None:
    """The slowest further device counts; a device's own reading is measured where nobody knows it."""

    class Far(FakeDevice):
        def at_work(self) -> Any:
            return Slow()

    class Slow:
        def __enter__(self) -> None:
            time.sleep(0.004)

        def __exit__(self, *_: Any) -> None: ...

    near = [FakeDevice(triton=False), FakeDevice(triton=False)]
    hop = hop_between(near, 0.0)
    assert 0 < hop.seconds < 0.002 and hop.bytes_per_second > 1e7 and hop.memory > 1e7
    far = hop_between([*near, Far(triton=False)], 5e9)
    assert far.seconds >= 0.002 and far.memory == 5e9
    elsewhere = devices_of(OtherMachine.parse("cuda:memory=64GB,link=50GB/s,host=256GB"), None, [0, 1])
    assert hop_between(elsewhere, 0.0) == Hop(ASSUMED, 50e9, 0.0)


def test_a_split_is_for_several_devices() -> None:
    for given, said in (
        ({"split": "stages"}, "--split stages is for several devices: name them with --devices"),
        ({"devices": "cpu:0,cpu:1", "split": "stage"}, "No split 'stage'. Did you mean 'stages'"),
        ({"devices": "cpu:0,cpu:1", "split": "stages", "policy": "eqspec"}, "--split stages is not for left-padded batches"),
    ):
        with pytest.raises(UsageError, match=said):
            Options.of(given, {})

"""The table of devices: every name opens one, `auto` is one of them, and a wrong name is told the nearest."""

import pytest

from tests.fake_device import FakeDevice
from understudy import devices
from understudy.devices import DEVICES, device_names, open_device
from understudy.devices.processor import Processor
from understudy.errors import UsageError


def test_auto_is_the_processor() -> None:
    assert isinstance(open_device("auto"), Processor) and isinstance(open_device("cpu"), Processor)
    assert device_names() == ("auto", *DEVICES) and devices.DEFAULT in DEVICES


def test_a_wrong_name_is_told_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"No device 'cdua'\. Did you mean 'cuda'"):
        open_device("cdua")


def test_host_memory_lies_behind_devices_with_memory_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEVICES, "fake", "tests.fake_device:FakeDevice")
    assert isinstance(open_device("fake", host_memory="4GiB"), FakeDevice)
    for name in ("auto", "cpu"):
        with pytest.raises(UsageError, match="--host-memory is for an accelerator"):
            open_device(name, host_memory="4GiB")

"""Devices that are not there, as tests of drafts on them open them."""

from collections.abc import Iterator

import pytest

from tests import fake_device
from tests.fake_device import FakeDevice
from understudy.devices import DEVICES
from understudy.drafters.search import SearchDrafter


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FakeDevice]]:
    """`fake` is a device; all that were opened. Each does its work late in an order of its own. Drafters do not warm up."""
    made: list[FakeDevice] = []
    monkeypatch.setattr(fake_device, "open_fake", lambda: made.append(FakeDevice(seed=len(made))) or made[-1])
    monkeypatch.setitem(DEVICES, "fake", "tests.fake_device:open_fake")
    monkeypatch.setattr(SearchDrafter, "warm", lambda self: None)
    yield made

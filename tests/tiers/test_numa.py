"""Where host memory for a device is touched first."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from understudy.tiers.cuda_streams import address
from understudy.tiers.numa import processors_near, running_on


def test_the_kernel_says_which_processors_are_near(tmp_path: Path) -> None:
    place = address(SimpleNamespace(pci_domain_id=0, pci_bus_id=0x65, pci_device_id=3))
    assert place == "0000:65:03.0" and address(SimpleNamespace(pci_bus_id=1)) == ""
    assert processors_near(place, tmp_path) == frozenset()
    (tmp_path / place).mkdir()
    for text, cpus in (("0-3,8\n", {0, 1, 2, 3, 8}), ("\n", set()), ("what?\n", set())):
        (tmp_path / place / "local_cpulist").write_text(text)
        assert processors_near(place, tmp_path) == cpus


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not say where threads run")
def test_the_thread_goes_there_and_comes_back() -> None:
    allowed = os.sched_getaffinity(0)
    first = min(allowed)
    with pytest.raises(ZeroDivisionError), running_on({first, 4000}):
        assert os.sched_getaffinity(0) == {first}
        _ = 1 // 0
    for cpus in (set(), {4000}, allowed):
        with running_on(cpus):
            assert os.sched_getaffinity(0) == allowed
    assert os.sched_getaffinity(0) == allowed


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not say where threads run")
def test_a_pinned_thread_goes_elsewhere_within_what_the_process_may_run_on() -> None:
    allowed = os.sched_getaffinity(0)
    first, last = {min(allowed)}, {max(allowed)}
    with running_on(first, within=first):
        with running_on(last, within=last):
            assert os.sched_getaffinity(0) == last
        assert os.sched_getaffinity(0) == first
        with running_on({4000}, within={4000}):
            assert os.sched_getaffinity(0) == first, "a processor that is not there"
    assert os.sched_getaffinity(0) == allowed

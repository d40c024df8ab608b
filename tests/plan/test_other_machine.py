"""A machine is described in one word, and what is not said is named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.errors import UsageError
from understudy.plan.other_machine import OtherMachine

WHOLE = "cuda:memory=24GB,link=25GB/s,disk=3.5GB/s,host=64GB,bandwidth=1008GB/s"


def test_all_that_is_said_is_taken() -> None:
    other = OtherMachine.parse(WHOLE)
    assert (other.memory, other.link, other.disk) == (24 * 10**9, 25 * 10**9, 3_500_000_000)
    assert (other.host, other.bandwidth, other.assumed) == (64 * 10**9, 1008 * 10**9, "")
    machine = other.machine()
    assert machine.gpu is not None and machine.gpu.total_memory == 24 * 10**9
    assert machine.memory_limit == 64 * 10**9 and machine.link_bandwidth == 3.5e9


def test_what_is_not_said_is_named() -> None:
    card = OtherMachine.parse("cuda:memory=24GB,link=25GB/s")
    assert "bandwidth=" in card.note and "host=" in card.note and card.machine().disk is None
    laptop = OtherMachine.parse("cpu:memory=16GB,disk=3.5GB/s")
    assert laptop.host == laptop.memory and "bandwidth=" in laptop.note and "host=" not in laptop.note
    assert laptop.machine().gpu is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tpu:memory=1GB", "tpu"),
        ("cuda", "memory and link must be given"),
        ("cuda:memory=24GB", "link must be given"),
        ("cpu:memory=16GB", "disk must be given"),
        ("cpu:memory=16GB,disk=1GB/s,link=2GB/s", "link is for an accelerator"),
        ("cpu:memory=16GB,dsk=1GB/s", "Did you mean 'disk'"),
        ("cpu:memory=16GB,disk=fast", "disk 'fast' is not a number of bytes"),
        ("cpu:memory=16GB,disk=0", "disk must be more than 0"),
        ("cpu:memory=16GB,disk=1GB/s,disk=2GB/s", "disk must be given once"),
        ("cpu:memory,disk=1GB/s", "memory must be given once, as memory=VALUE"),
        ("cpu:memory=16GB/s,disk=1GB/s", "is not a number of bytes"),
    ],
)
def test_what_describes_no_machine_is_refused_in_one_line(text: str, says: str) -> None:
    with pytest.raises(UsageError) as error:
        OtherMachine.parse(text)
    assert says in str(error.value) and "\n" not in str(error.value)


@given(st.text(max_size=40))
def test_any_text_is_a_machine_or_a_usage_error(text: str) -> None:
    for device in ("", "cpu:", "cuda:memory=1GB,link=1GB,"):
        try:
            assert OtherMachine.parse(device + text).memory > 0
        except UsageError as error:
            assert str(error)

"""One thread for torch: the suite shares its machine, and a tiny model gains nothing from more."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
# What is compiled of tests and of the package is kept: a process that compiles it anew takes a third longer to start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import functools
import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings

from understudy.tiers import DiskProbe, probe

if TYPE_CHECKING:
    from understudy import LLM

sys.dont_write_bytecode = False
torch.set_num_threads(1)
# A busy machine makes any example slow, which says nothing of the code.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")
if not torch.cuda.is_available():  # before anything imports Triton: its kernels then run on the CPU, slowly
    os.environ.setdefault("TRITON_INTERPRET", "1")


# Tests whose lines are not counted, since counting them takes half as long again: kernels, which are machine code, and what runs
# the whole in many combinations of parts that have tests of their own.
UNCOUNTED = ("kernels/", "test_contracts.py", "models/test_bits.py", "models/test_families.py")

# Files that take longest, in this order; after them come those with a test that is marked slow or that waits for Ray.
LONGEST = (
    *("models/test_hybrid.py", "kernels/gpu/test_compiles.py", "devices/test_experts_fake.py", "models/test_families.py"),
    *("test_contracts.py", "cluster/test_replicas.py", "cluster/test_lines.py", "models/test_quantised.py", "devices/test_fake.py"),
    *("test_forced.py", "models/stock/test_indexers.py", "devices/test_ahead_fake.py", "benchmarks/test_gpu_forms.py"),
    *("test_llm.py", "weights/test_roundtrip.py", "benchmarks/test_gpu_check.py", "policies/test_identity.py"),
    *("models/stream/test_hauls.py", "test_docs.py", "server/test_agents.py", "models/test_bits.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent
    for item in items:
        if item.path.relative_to(tests).as_posix().startswith(UNCOUNTED):
            item.add_marker(pytest.mark.no_cover)
    # Files that take longest come first, so that none of them is begun when all others are done. (`make test` tells xdist to keep
    # this order; its own begins with the files of many tests.)
    first = {tests / name: place for place, name in enumerate(LONGEST)}
    assert all(path.exists() for path in first), f"of these files some are gone: {LONGEST}"
    marked = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("ray")}
    items.sort(key=lambda item: (first.get(item.path, len(first)), item.path not in marked))


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Stores and measurements of the whole suite go to one new folder, never to the user's cache."""
    os.environ["UNDERSTUDY_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="session")
def _measured_once() -> Iterator[None]:
    """The speeds of memory and of a disk are measured once, though every test has new directories: each takes a second.

    Tests of the probes themselves import them before, and measure."""
    disks: dict[int, DiskProbe] = {}
    measure = probe.probe_disk

    def probe_disk(file: Path) -> DiskProbe:
        device = file.stat().st_dev
        if device not in disks:
            disks[device] = measure(file)
        return disks[device]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "probe_disk", probe_disk)
        patch.setattr(probe, "probe_memory", functools.cache(probe.probe_memory))
        yield


def pytest_unconfigure() -> None:
    # What libraries count at the end is counted whole.
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="module")
def _older_objects_are_not_searched() -> None:
    """Each load of a model collects garbage. What was there before this file began (modules, all tests, what they share) is left
    out of that: looking at it took more than the rest of a load."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def drafting(model: Path) -> "Iterator[LLM]":
    """The checkpoint that a module's own fixture `model` made, drafted by its copy, three texts at a time."""
    from tests.tiny import opened

    with opened(model, rows=3) as llm:
        yield llm


@pytest.fixture(scope="module")
def plain(model: Path) -> "Iterator[LLM]":
    """The same checkpoint without drafting, one text at a time."""
    from tests.tiny import opened

    with opened(model, method="none") as llm:
        yield llm


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny bfloat16 Llama on disk."""
    from tests.tiny import save

    save(tmp_path / "model", "llama", torch.bfloat16)
    return tmp_path / "model"

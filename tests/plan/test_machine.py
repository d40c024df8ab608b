"""What the machine is said to have is what this process may use."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from understudy.plan import machine
from understudy.plan.machine import Machine, free_bytes, memory_limit, peak_memory_bytes
from understudy.tiers import DiskProbe, probe
from understudy.tiers.memory import arena


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "store" / "residual.bin"
    path.parent.mkdir()
    path.write_bytes(bytes(4 << 20))
    return path


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Probes that take no time and are n GB/s at the n-th call; the files they were given."""
    files: list[Path] = []

    def probe_disk(file: Path) -> DiskProbe:
        files.append(file)
        return DiskProbe(1e9 * len(files), 4096, 2, True, "")

    monkeypatch.setattr(probe, "probe_disk", probe_disk)
    monkeypatch.setattr(probe, "probe_memory", lambda: 1e10)
    return files


def cgroup(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def test_inspect_names_what_is_here() -> None:
    here = Machine.inspect()
    assert here.cpu and here.cores >= 1
    assert 0 < here.memory_limit <= here.total_memory
    assert json.loads(json.dumps(here.to_dict()))["cores"] == here.cores
    with pytest.raises(AssertionError, match="not measured"):
        _ = here.link_bandwidth


def test_a_container_lowers_the_limit(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/box",
        "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
        "sys/fs/cgroup/box/memory.max": str(1 << 30),
        "sys/fs/cgroup/box/memory.current": str(700 << 20),
        "sys/fs/cgroup/box/memory.stat": f"inactive_file {100 << 20}",
        "sys/fs/cgroup/box/cpu.max": "100000 100000",
    }
    root = cgroup(tmp_path, files)
    free = (1 << 30) - (600 << 20)
    own = machine.psutil.Process().memory_info().rss
    assert abs(memory_limit(root) - (own + free)) < 64 << 20
    assert machine.cores(root) == 1
    assert memory_limit(tmp_path / "no container") > memory_limit(root)


def test_speeds_are_measured_once_and_again_when_asked(weights: Path, tmp_path: Path, probes: list[Path]) -> None:
    cache = tmp_path / "cache"
    first = Machine.inspect().measured(weights, cache)
    assert first.link_bandwidth == 1e9 and first.memory_bandwidth == 1e10
    second = Machine.inspect().measured(weights, cache)
    assert (second.disk, second.memory_bandwidth) == (first.disk, first.memory_bandwidth)
    assert probes == [weights]
    assert Machine.inspect().measured(weights, cache, again=True).link_bandwidth == 2e9
    assert Machine.inspect().measured(large(tmp_path / "elsewhere.bin"), cache).link_bandwidth == 3e9
    assert Machine.inspect().measured(weights, cache).link_bandwidth == 2e9


def large(file: Path) -> Path:
    """A file that is worth a probe of its own; it takes no room."""
    file.parent.mkdir(exist_ok=True)
    with file.open("wb") as made:
        made.truncate(probe.SMALL + 1)
    return file


def test_a_small_file_is_taken_to_be_as_fast_as_the_disk_it_is_on(
    weights: Path, tmp_path: Path, probes: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "elsewhere" / "small.bin"
    small.parent.mkdir()
    small.write_bytes(b"weights")
    cache = tmp_path / "cache"
    assert Machine.inspect().measured(weights, cache).link_bandwidth == 1e9
    assert Machine.inspect().measured(small, cache).link_bandwidth == 1e9 and probes == [weights]
    assert Machine.inspect().measured(small, cache, again=True).link_bandwidth == 2e9
    other = tmp_path / "other" / "small.bin"
    other.parent.mkdir()
    other.write_bytes(b"weights")
    assert replace(Machine.inspect(), cpu="another").measured(other, cache).link_bandwidth == 3e9
    # as if it were on another disk
    stat = Path.stat
    told = lambda path, **kind: os.stat_result((*stat(path, **kind)[:2], 4711, *stat(path, **kind)[3:]))  # noqa: E731
    monkeypatch.setattr(Path, "stat", lambda path, **kind: told(path, **kind) if path == other else stat(path, **kind))
    assert Machine.inspect().measured(other, cache).link_bandwidth == 4e9


def test_the_speed_of_memory_is_measured_once_for_all_directories(
    weights: Path, tmp_path: Path, probes: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine.inspect().measured(weights, tmp_path)
    monkeypatch.setattr(probe, "probe_memory", lambda: 2e10)
    other = Machine.inspect().measured(large(tmp_path / "elsewhere" / "residual.bin"), tmp_path)
    assert other.memory_bandwidth == 1e10 and other.link_bandwidth == 2e9
    assert Machine.inspect().measured(weights, tmp_path, again=True).memory_bandwidth == 2e10


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"x": 3}', '{"x": {"disk": 1}}', '{"x": {"disk": {"y": 1}}}'])
def test_a_spoilt_cache_is_measured_again(weights: Path, tmp_path: Path, probes: list[Path], text: str) -> None:
    (tmp_path / "machine.json").write_text(text)
    assert Machine.inspect().measured(weights, tmp_path).link_bandwidth == 1e9
    assert Machine.inspect().measured(weights, tmp_path).link_bandwidth == 1e9
    assert len(probes) == 1


def test_a_cache_that_cannot_be_written_is_no_error(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert Machine.inspect().measured(weights, tmp_path / "file").link_bandwidth > 1e6


def test_peak_memory_sees_what_was_held_and_let_go() -> None:
    before = peak_memory_bytes()
    arena(100 << 20).fill_(1)
    assert peak_memory_bytes() >= max(before, 100 << 20)


def test_free_bytes_of_a_directory_that_is_not_made_yet(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "a" / "b") > 0

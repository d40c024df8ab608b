"""The probe ends in time, chooses among what it was given, and prefers small buffers to a lead that is noise."""

import time
from pathlib import Path

import pytest

from understudy.errors import TransferError
from understudy.tiers import probe
from understudy.tiers.probe import CANDIDATES, choose, measure_disk, probe_disk, probe_memory

MIB = 1 << 20


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("probe") / "weights.bin"
    path.write_bytes(bytes(20 * MIB + 123))
    return path


def test_a_probe_is_short_and_its_choice_was_offered(weights: Path) -> None:
    began = time.perf_counter()
    found = probe_disk(weights, seconds=0.4)
    # a busy machine takes its time; one that reads the file round and round does not end
    assert time.perf_counter() - began < 60
    assert (found.block, found.threads) in CANDIDATES
    assert found.bytes_per_second > 1e6


@pytest.mark.parametrize(("nbytes", "seconds"), [(20 * MIB, 0.2), (512 * MIB, 0.4), (4096 * MIB, 0.8)])
def test_a_small_file_is_measured_for_less_time(
    nbytes: int, seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sparse.bin"
    with path.open("wb") as file:
        file.truncate(nbytes)
    asked: list[float] = []
    monkeypatch.setattr(probe._Run, "rate", lambda _, turn: asked.append(turn) or 1e9)
    probe_disk(path)
    assert len(asked) > len(CANDIDATES) and sum(asked) == pytest.approx(seconds)


def test_measuring_a_range(weights: Path) -> None:
    assert measure_disk(weights, MIB, 2, 0.05, start=5 * MIB, stop=9 * MIB) > 1e6


def test_a_file_smaller_than_a_block(tmp_path: Path) -> None:
    path = tmp_path / "small.bin"
    path.write_bytes(bytes(3 * 4096 + 1))
    assert measure_disk(path, 8 * MIB, 4, 0.02) > 0
    with pytest.raises(TransferError, match=r"small\.bin is too short to measure"):
        measure_disk(path, MIB, 1, 0.02, start=3 * 4096)


def test_the_choice_under_noise() -> None:
    assert choose({(MIB, 2): 1.0e9, (2 * MIB, 2): 2.9e9, (8 * MIB, 8): 3.0e9}) == (2 * MIB, 2)
    assert choose({(MIB, 2): 1.0e9, (2 * MIB, 2): 2.0e9, (8 * MIB, 8): 3.0e9}) == (8 * MIB, 8)
    assert choose({(MIB, 4): 1.0, (2 * MIB, 2): 1.0}) == (MIB, 4)


def test_memory_bandwidth_is_plausible() -> None:
    assert 1e8 < probe_memory(16 * MIB, 0.02) < 1e13

"""`doctor --bench` measures anew and keeps it for all that plans; `doctor MODEL` says what limits; mistakes are one line."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.frontends.conftest import Run
from understudy import LLM, yardstick
from understudy.frontends import main
from understudy.plan import machine
from understudy.plan.machine import Machine
from understudy.plan.rounds import Arithmetic
from understudy.tiers import DiskProbe, probe

FOUND = Arithmetic(4e9, 1e-11, 3e9, 8e9, 1e-12, 1e-4, 1e-5, 1e-4, 1e-4, 1e-5, 1e-5, 1e-5, 1e-3, 1e-3)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What was measured, in their order; each takes no time."""
    measured: list[str] = []

    def arithmetic() -> Arithmetic:
        measured.append("arithmetic")
        return FOUND

    def disk(file: Path) -> DiskProbe:
        measured.append("disk")
        return DiskProbe(1e9 * len(measured), 4096, 2, True, "")

    monkeypatch.setattr(yardstick, "measure", arithmetic)
    monkeypatch.setattr(probe, "probe_disk", disk)
    monkeypatch.setattr(probe, "probe_memory", lambda: 1e10)
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    store = tmp_path / "cache" / "some-store"
    store.mkdir(parents=True)
    (store / "residual.bin").write_bytes(bytes(5 << 20))
    return measured


def said(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    """The one JSON object of a doctor."""
    assert main(["doctor", *words, "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_a_bench_measures_anew_and_keeps_it(
    taken: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said(capsys, "--bench")
    figures = said(capsys, "--bench")["figures"]
    assert isinstance(figures, dict) and taken.count("arithmetic") == 2
    assert asdict(FOUND).items() <= figures.items() and figures["memory"] == 1e10
    # what plans takes what was measured last
    file = tmp_path / "cache" / "some-store" / "residual.bin"
    kept = Machine.inspect().measured(file, tmp_path / "cache")
    assert kept.link_bandwidth == figures["disk"]["bytes_per_second"] and yardstick.measured(tmp_path / "cache") == FOUND
    before = list(taken)
    # the cache came from another processor
    monkeypatch.setattr(machine, "_cpu_name", lambda: "another processor")
    yardstick.measured(tmp_path / "cache")
    Machine.inspect().measured(file, tmp_path / "cache")
    assert taken == [*before, "arithmetic", "disk"]


def test_a_bench_is_for_people_too(taken: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--bench"]) == 0
    lines = {line[:16].strip(): line[17:] for line in capsys.readouterr().out.splitlines()}
    assert lines["memory speed"] == "10.00 GB/s" and lines["decoding"].startswith("1.50 G weights/s")
    assert {"disk speed", "draft products", "exact products", "processor"} <= lines.keys() and taken


def test_a_model_is_told_what_limits_it(
    taken: list[str], tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    diagnosis = said(capsys, str(tiny))["diagnosis"]
    assert isinstance(diagnosis, dict) and diagnosis["tokens_per_second"] > 0 and diagnosis["limited_by"]
    assert any(change["what"] == "--bits 3" for change in diagnosis["helps"]) and taken
    store = LLM.prepare(tiny, output=tmp_path / "store")
    prepared = said(capsys, str(store.path))["diagnosis"]
    assert isinstance(prepared, dict) and not any("--bits" in change["what"] for change in prepared["helps"])


def test_a_cache_that_cannot_be_written_costs_measuring_again(
    taken: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("arithmetic.json", "machine.json"):
        # nothing can take the place of a directory, whoever asks
        (tmp_path / "cache" / name / "x").mkdir(parents=True)
    said(capsys, "--bench")
    said(capsys, "--bench")
    assert taken.count("arithmetic") == 2


def test_mistakes_are_one_line(command: Run) -> None:
    for words in (["org/model"], ["demo", "--bits", "9"]):
        done = command("doctor", *words)
        assert done.returncode in (1, 2) and done.stdout == "" and len(done.stderr.strip().splitlines()) == 1, done.stderr

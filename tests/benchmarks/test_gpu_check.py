"""The GPU check without a GPU: it says so; and each half of it runs on a simulated device."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
import gpu_check
import gpu_exact
import gpu_measure
import gpu_table
from tests.fake_device import FakeDevice
from understudy import devices
from understudy.devices import DEVICES

SCRIPT = Path(gpu_check.__file__)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.splitlines() == [
        "gpu_check: there is no usable CUDA GPU here; --fake runs the same on a simulated device."
    ]


def test_it_names_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu_check, "NEEDED", ("torch", "no_such_package", "nor_this"))
    monkeypatch.setattr(sys, "argv", ["gpu_check"])
    assert gpu_check.main() == 1
    assert capsys.readouterr().err == "gpu_check: these packages are missing: no_such_package, nor_this\n"


def test_on_a_simulated_device_all_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEVICES, "fake", "tests.fake_device:open_fake")
    checks = dict(gpu_exact.exactness("fake"))
    assert len(checks) == 7 and not any(checks.values()), checks


def test_a_device_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(FakeDevice):
        def attend(self, query: torch.Tensor, *given: Any) -> torch.Tensor:
            return super().attend(query, *given) * (1 + 0.1 * len(query))

        def decode(self, *given: Any, **options: Any) -> torch.Tensor:
            blocks = super().decode(*given, **options)
            blocks[0, 0, 0] += 1
            return blocks

    device = Wrong(triton=False)
    monkeypatch.setattr(device, "triton", True)
    assert "usual: 1 of" in gpu_exact.residuals(device, True)
    assert "differs alone" in gpu_exact.attention(device, True)
    monkeypatch.setattr(devices, "find", lambda *_: lambda: Wrong(triton=False))
    monkeypatch.setitem(DEVICES, "fake", "")
    assert "margin" in gpu_exact.tiny("fake", "llama", codec="raw")


def test_a_method_is_measured_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ, "TRITON_INTERPRET": "1"})
    runs = (gpu_measure.PLAIN, gpu_measure.BEST)
    rows = gpu_check.speed(gpu_measure.FAKE, runs, time.monotonic() + 250, tmp_path)
    assert all(row["streamed"] > 0 and row["tokens_per_second"] > 0 and row["host_bytes"] > 0 for row in rows[:1]), rows
    assert not gpu_table.disagreement(rows) and rows[1]["accepted"] > 0
    assert len(gpu_table.table(rows).splitlines()) == 4
    assert rows[1]["graphs"] > 0 and "ratio" in gpu_table.level_line(rows[1]) and "level_ms" not in rows[0]
    reached = {goal["what"]: goal for goal in gpu_table.goals(rows)}
    assert reached["drafted against plain, greedy"]["reached"] > 0 and reached["host memory against the Store"]["met"]
    assert "accelerate, CPU offload: not run" in gpu_table.goal_lines(gpu_table.goals(rows))
    rows[1]["token_ids"][0] += 1
    assert gpu_table.disagreement(rows) == ["drafted, delta does not write what plain writes"]
    late = gpu_check.one(runs[0], tmp_path, gpu_measure.FAKE, 1.0)
    assert late == {"error": "no time was left"} and "no time" in gpu_table.table([{"run": rows[0]["run"], **late}])
    assert "No directory" in gpu_check.one(runs[0], tmp_path / "none", gpu_measure.FAKE, 100.0)["error"]
    json.dumps([rows, gpu_table.goals(rows)])


def test_goals_are_met_or_missed_or_not_measured() -> None:
    def row(run: gpu_measure.Run, **figures: Any) -> dict[str, Any]:
        return {"run": {"name": run.name, "temperature": run.temperature}, **figures}

    rows = [
        row(gpu_measure.PLAIN, tokens_per_second=1.5, link_bytes_per_second=9.0, link_peak=10.0, host_bytes=0, store_bytes=0),
        row(gpu_measure.BEST, tokens_per_second=33.0, limit_tokens_per_second=40.0, level_ratio=1.4),
        row(gpu_measure.PAPERS, tokens_per_second=16.5),
        row(gpu_measure.PLAIN_SAMPLED, error="it was not done in time"),
    ]  # fmt: skip
    rows[1] |= {"device_bytes": 104, "planned_bytes": 100}
    found = [(goal["reached"], goal["met"], goal["why"]) for goal in gpu_table.goals(rows)]
    assert [met for _, met, _ in found] == [False, False, True, True, True, False, True, False, False, False]
    assert found[3][0] == 2.0 and found[4][0] == 22.0 and found[0] == (None, False, "accelerate, CPU offload: not run")
    assert "T=0.6: not run" in found[5][2] or "not done in time" in found[5][2]
    assert found[7] == (None, False, "nothing was streamed")

"""The GPU check without a GPU: it says so; and each half of it runs on a simulated device."""

import json
import multiprocessing
import operator
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
import gpu_check
import gpu_exact
import gpu_measure
import gpu_passes
import gpu_profile
import gpu_work
from gpu_child import Child
from gpu_results import Results
from gpu_rows import BEST, FAKE, HEAD_LOAD, HEADED, PLAIN, QUICK_RUNS, RAW, RAW_LOAD, RUNS, Load, Run, by_load, chosen
from gpu_table import goals
from tests.fake_device import FakeDevice
from tests.tiny import save
from understudy import LLM, SamplingParams, devices
from understudy.devices import DEVICES

SCRIPT = Path(gpu_check.__file__)
SMALL = replace(FAKE, prompt=6, tokens=3, plain_tokens=2, warm_tokens=1, long=40)
# Nothing that is waited for takes so long, whatever else the machine does.
LONG = 300.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=LONG)
    assert done.returncode == 1 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("gpu_check: there is no usable CUDA GPU here (") and line.endswith("on a simulated device.")


def test_it_names_what_is_missing_and_how_to_bring_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu_check, "NEEDED", ("torch", "no_such_package", "nor_this"))
    monkeypatch.setattr(sys, "argv", ["gpu_check"])
    assert gpu_check.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gpu_check: these packages are missing: no_such_package, nor_this. Without a network: `pip download ")
    assert "-d wheels no_such_package nor_this`" in line


@pytest.mark.parametrize("words", [["--only", "nonsense"], ["--widen", "-1"], ["--memory", "-2"]])
def test_nonsense_is_refused(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_check", *words])
    with pytest.raises(SystemExit):
        gpu_check.main()
    assert "gpu_check: error:" in capsys.readouterr().err


def test_rows_are_picked_by_short_names() -> None:
    assert chosen([], False) == (RUNS, True) and chosen([], True) == (QUICK_RUNS, True)
    assert chosen(["exact"], False) == ((), True)
    assert [run.short for run in chosen(["best", "plain"], True)[0]] == ["plain", "best"]
    runs, exact = chosen(["sampled", "rows8"], False)
    assert not exact and {run.temperature for run in runs} == {0.6, 0.0} and runs[-1].short != "plain"
    shared = [[run.short for run in group] for group in by_load(QUICK_RUNS)]
    assert shared[:2] == [["plain", "plain-sampled"], ["paper", "paper-sampled"]]


def test_on_a_simulated_device_all_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEVICES, "fake", "tests.fake_device:open_fake")
    groups = gpu_work.EXACT_GROUPS[: FAKE.exact_groups]
    checks = [check for group in groups for check in gpu_exact.exactness("fake", 1.0, group)]
    assert len(checks) == 9 and not any(check.trouble for check in checks) and all(check.seconds > 0 for check in checks), checks
    assert checks[5].what == "tiny model: 2 drafted texts, 6 tokens, are the plain ones"
    assert groups[-1] in checks[6].what


def test_blocks_that_run_as_stock_ones_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing but exactness is asked for, blocks of many kinds are compared."""
    monkeypatch.setitem(DEVICES, "fake", "tests.fake_device:open_fake")
    assert "qwen3" in gpu_work.FURTHER_GROUPS
    (found,) = gpu_exact.exactness("fake", 1.0, "qwen3")
    assert found.trouble == ""
    monkeypatch.setattr("understudy.kernels.gpu.blocks.TritonBlocks.attends", lambda *given: False)
    (found,) = gpu_exact.exactness("fake", 1.0, "qwen3")
    assert found.trouble.endswith("of 1 blocks run in fewer steps")


HELD: list[Any] = []


def _locks(send: Any) -> None:
    """Make what a progress bar makes, which lasts as long as the process."""
    HELD.append(multiprocessing.RLock())
    send("made", repr(HELD[0]))


def test_processes_leave_nothing_behind(tmp_path: Path) -> None:
    """Neither one that ends nor one that is ended: what keeps track of locks says so at the end of all."""
    script = (
        "import gpu_child\nfrom tests.benchmarks.test_gpu_check import _locks\ngpu_child.prepare_path(True)\n"
        f"child = gpu_child.Child.begin('forkserver', _locks, __import__('pathlib').Path({str(tmp_path / 'log')!r}), True)\n"
        "assert 'RLock' in next(child.messages(100))[1]\nchild.end()"
    )
    root = Path(gpu_check.__file__).parents[1]
    paths = os.pathsep.join([str(root), str(root / "benchmarks"), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0 and "leaked" not in done.stderr, done.stderr


def test_a_device_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(FakeDevice):
        def attend(self, query: torch.Tensor, *given: Any) -> torch.Tensor:
            return super().attend(query, *given) + torch.randn(query.shape[-1]) * (len(query) - 1)

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


def test_levels_passes_and_the_link_are_measured_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEVICES, "fake", "tests.fake_device:open_fake")
    monkeypatch.setattr(gpu_passes, "WIDTHS", (1, 2))
    save(tmp_path / "model", "llama", torch.bfloat16, hidden_size=64, intermediate_size=96, num_hidden_layers=1)
    options = {"memory": "1GiB", "resident": "none", "context": 64, "rows": 1, "device": "fake", "codec": "raw"}
    with LLM(tmp_path / "model", method="substitute:width=2,depth=2", **options) as llm:
        llm.generate([[5, 99, 5]], SamplingParams(max_new_tokens=1, ignore_eos=True))
        monkeypatch.setattr(gpu_passes, "most_nodes", lambda llm: 5)
        found = gpu_passes.passes(llm)
        assert found["nodes"] == 5 and found["ratio"] > 0
        assert all(each["ms"] >= each["device_ms"] > 0 and each["host_ms"] > 0 for each in (found["one"], found["many"]))
        links = gpu_passes.links(llm)
        assert links[1]["copies"] >= 2 and links[1]["bytes"] > 0 and 0 <= links[1]["idle_share"] <= 1
        assert "fetch" not in vars(llm.model.ring.tier)
        one = gpu_profile.examined(llm, gpu_profile.Work("", 1, gpu_passes.Pass.of(llm, 1).run))
        assert one["kernels"] > 0 and one["functions"] and any(kernel["name"].startswith("aten::") for kernel in one["top"])
        found = gpu_passes.levels(llm)
        assert set(found["widths"]) == {1, 2} and found["graphs"] > 0 and found["bound_ms"] > 0


def test_busy_and_idle_times_are_those_of_overlapping_spans() -> None:
    spans = [("a", 0.0, 1000.0), ("b", 500.0, 2000.0), ("a", 5000.0, 6000.0)]
    assert gpu_profile.busy(spans, "kernel", 1) == {"kernel_ms": 3.0, "kernel_idle_ms": 3.0}
    assert gpu_profile.top(spans, 2)[0] == {"name": "a", "count": 1.0, "ms": 1.0}


def _dawdle(send: Any, seconds: float) -> None:
    time.sleep(seconds)
    send("checked", "what takes long", "", seconds)


def test_what_is_not_compared_in_its_time_goes_on_after_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: None
) -> None:
    work = replace(_work(tmp_path, (PLAIN,), exact_seconds=0.01), exact=True)
    lasting = [LONG, 0.0]

    def compare(work: gpu_check.Work, groups: Any, seconds: float) -> dict[str, Child]:
        return {name: work.begin(name, _dawdle, lasting[0]) for name in groups[:1]}

    monkeypatch.setattr(gpu_check, "compare", compare)
    late = gpu_check.prepare(work)
    assert late == ["kernels"] and "Store, raw" in work.results.made and not work.results.exactness and not work.results.cut
    lasting.pop(0)
    gpu_check.finish(work, late)
    assert "what takes long" in work.results.exactness and not work.results.cut
    work.results.began -= work.results.size.seconds
    gpu_check.finish(work, late)
    assert work.results.cut == ["exactness of kernels: no time was left"]


def test_what_is_used_for_the_first_time_in_a_measured_text_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton import knobs

    monkeypatch.setitem(DEVICES, "fake", "tests.fake_device:open_fake")
    save(tmp_path / "model", "llama", torch.bfloat16, hidden_size=64, intermediate_size=96, num_hidden_layers=1)
    options = {"memory": "1GiB", "resident": "none", "context": 64, "rows": 1, "device": "fake", "codec": "raw"}
    with LLM(tmp_path / "model", method="substitute:width=2,depth=2", **options) as llm:
        params = SamplingParams(max_new_tokens=4, ignore_eos=True)
        search = llm.engine.drafter.search
        search.graphs.clear()
        before = search.captured
        with gpu_measure.first_uses(llm) as first:
            llm.generate([[5, 99, 5]], params)
            knobs.runtime.jit_post_compile_hook(fn=SimpleNamespace(name="one.kernel"))
        assert first[0] == "one.kernel" and first[1:] == ["a level"] * (search.captured - before) and len(first) > 1
        llm.engine.kept.clear()
        with gpu_measure.first_uses(llm) as again:
            llm.generate([[5, 99, 5]], params)
        assert not again and knobs.runtime.jit_post_compile_hook is None


def _work(folder: Path, runs: tuple[Run, ...], **size: Any) -> gpu_check.Work:
    gpu_check.prepare_path(True)
    return gpu_check.Work(runs, False, False, folder, Results(replace(SMALL, **size), folder / "gpu.json"))


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ, "TRITON_INTERPRET": "1", "UNDERSTUDY_CACHE": str(tmp_path / "cache")})


def test_a_load_is_measured_in_a_process_of_its_own_and_what_fails_is_left_out(tmp_path: Path, environment: None) -> None:
    broken = replace(PLAIN, short="broken", name="broken", load=Load("nonsense"))
    headed = replace(HEADED, load=replace(HEAD_LOAD, codec="raw", resident="none"))
    work = _work(tmp_path, (PLAIN, broken, replace(RAW, load=Load("substitute:width=2,depth=2"), more=()), headed))
    gpu_check.prepare(work)
    assert set(work.results.made) == {"stand-in", "calibration", "Store, raw", "head"} and not work.results.cut, work.results.cut
    gpu_check.speed(work)
    plain, failed, drafted, with_head = work.results.rows
    assert with_head["drafted"] > 0 and with_head["token_ids"][:2] == plain["token_ids"]
    assert plain["streamed"] > 0 and plain["host_bytes"] > 0 and plain["load_seconds"] > 0 and plain["warm_seconds"] > 0
    assert "nonsense" in failed["error"]
    assert drafted["drafted"] > 0 and drafted["token_ids"][:2] == plain["token_ids"]
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["run"]["short"] for row in written["rows"]] == ["plain", "broken", "raw", "head"] and not written["wrong"]
    drafted["token_ids"][0] += 1
    assert work.results.wrong == ["drafted, raw, no residents does not write what plain writes"]


def test_a_row_that_takes_too_long_is_ended(tmp_path: Path, environment: None) -> None:
    work = _work(tmp_path, (PLAIN,), row_seconds=0.01)
    gpu_check.speed(work)
    assert [row["error"] for row in work.results.rows] == ["it was not done in time"]
    work = _work(tmp_path, (PLAIN, replace(RAW, load=RAW_LOAD)), seconds=1.0)
    gpu_check.speed(work)
    assert [row["error"] for row in work.results.rows] == ["no time was left"] * 2
    child = Child.begin("forkserver", operator.add, tmp_path / "child.log", True, 1)
    assert list(child.messages(LONG)) == [] and "TypeError" in child.failure()
    child.end()


def test_who_ends_it_early_gets_what_was_measured(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    words = ["--fake", "--only", "plain", "speed", "--json", str(file), "--keep", str(tmp_path / "keep")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, str(SCRIPT), *words], **pipes) as process:
        end = time.monotonic() + LONG
        while not (file.exists() and json.loads(file.read_text())["rows"]) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=LONG)
    assert process.returncode == 0, err
    assert "Cut short: it was ended from outside" in out and "| plain |" in out and "| of what is wanted |" in out
    assert json.loads(file.read_text())["cut"] == ["it was ended from outside"]
    assert (tmp_path / "keep" / "standin-1" / "config.json").exists()


def _row(run: Run, **figures: Any) -> dict[str, Any]:
    return {"run": asdict(run), **figures}


def test_goals_are_met_or_missed_or_not_measured() -> None:
    rows = [
        _row(PLAIN, tokens_per_second=1.5, limit_tokens_per_second=1.5, link_bytes_per_second=9.0, link_peak=10.0, host_bytes=0),
        _row(BEST, tokens_per_second=60.0, levels={"widths": {8: {"ratio": 1.4}}}, device_bytes=104, planned_bytes=100),
        _row(RUNS[2], tokens_per_second=16.0),
        _row(RAW, tokens_per_second=63.0, limit_tokens_per_second=70.0, passes={"ratio": 1.3}),
        _row(RUNS[1], error="it was not done in time"),
    ]
    rows[0]["store_bytes"] = 0
    found = {goal["what"]: goal for goal in goals(rows)}
    assert found["draft level at width 8 against bytes/bandwidth"]["met"]
    assert found["pass of 64 nodes against a pass of 1"]["share"] == pytest.approx(1.1 / 1.3)
    # the fastest drafted row, whatever its codec
    assert found["drafted (best) against plain, greedy"]["reached"] == 42.0
    assert found["drafted (best) against the paper's method, greedy"]["reached"] == 63 / 16
    assert found["drafted (best) against plain, T=0.6"]["why"] == "drafted: not run"
    assert found["host memory against the Store"]["why"] == "nothing was streamed"
    assert not found["peak VRAM off the plan by"]["met"]
    assert found["8 requests together against one"]["why"] == "drafted, delta, 8 requests together: not run"

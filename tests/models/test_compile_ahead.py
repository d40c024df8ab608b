"""What a first run needs is compiled side by side where that is worth it, and what a run then uses is what was compiled."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from understudy import startup
from understudy.models import compile_ahead as module
from understudy.models.compile_ahead import EACH, USES, compile_ahead, shared_out


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The words of each process that is started, on a machine of four processors where nothing is compiled."""
    words: list[list[str]] = []
    monkeypatch.setattr(module, "_run", lambda given: words.extend(map(list, given)))
    monkeypatch.setattr(module, "on_disk", lambda kernel: False)
    monkeypatch.setattr(module, "cores", lambda: 4)
    monkeypatch.setattr(module, "spare_bytes", lambda: 100 * EACH)
    monkeypatch.setattr(startup, "owned", lambda: True)
    return words


@pytest.mark.parametrize("prepares", [True, False])
def test_every_use_is_given_to_one_process(prepares: bool, started: list[list[str]]) -> None:
    said: list[str] = []
    assert compile_ahead(torch.bfloat16, prepares, lambda what, done, total: said.append(what)) == 4 == len(started)
    names = [name for own in started for name in own[1:]]
    assert sorted(names) == sorted(name for name, each in USES.items() if prepares or not each.prepares)
    assert {own[0] for own in started} == {"bfloat16"} and said == [module.WHAT]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cores", lambda: 1), ("spare_bytes", lambda: 2 * EACH - 1), ("on_disk", lambda kernel: True),
        ("on_disk", lambda kernel: None),
    ],
)  # fmt: skip
def test_one_processor_little_memory_nothing_to_compile_or_no_place_for_it_start_none(
    name: str, value: Any, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, value)
    assert compile_ahead(torch.bfloat16, True) == 0 and not started


def test_no_process_is_started_by_programs_of_others(started: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "owned", lambda: False)
    assert compile_ahead(torch.bfloat16, True) == 0 and not started


def test_little_work_is_left_to_the_command(started: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "on_disk", lambda kernel: kernel is not USES["choices"].kernel)
    assert compile_ahead(torch.bfloat16, True) == 0 and not started


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_work_is_shared_out_evenly(count: int) -> None:
    lists = shared_out(list(USES), count)
    assert sorted(name for own in lists for name in own) == sorted(USES) and len(lists) == min(count, len(USES))
    loads = [sum(USES[name].seconds for name in own) for own in lists]
    assert max(loads) - min(loads) <= max(each.seconds for each in USES.values())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_each_use_runs(dtype: str) -> None:
    module.use(dtype, USES)


def test_processes_end_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROGRAM", "import time\ntime.sleep(600)")
    ended: list[Any] = []
    monkeypatch.setattr(module.time, "sleep", lambda seconds: (_ for _ in ()).throw(KeyboardInterrupt))
    end = module._end
    monkeypatch.setattr(module, "_end", lambda process: (end(process), ended.append(process.poll())))
    with pytest.raises(KeyboardInterrupt):
        module._run([["bfloat16", "choices"], ["bfloat16", "residuals"]])
    assert len(ended) == 2 and None not in ended


# A first run of the built-in model, which tells how many processes compiled and which kernels were compiled after that.
FIRST = """
import sys
from understudy import startup
startup.own()
with startup.lean():
    from understudy.models import compile_ahead as module
from numba.core import event
begun, inside = [], []
class Watch(event.Listener):
    def on_start(self, found): begun.append(found.data["dispatcher"].py_func.__module__)
    def on_end(self, found): pass
plain = module.compile_ahead
def noted(*given):
    before = len(begun)
    inside.append(plain(*given))
    assert len(begun) == before
from understudy import sources
sources.compile_ahead = noted
module.cores = lambda: 2
from understudy.frontends import main
event.register("numba:compile", Watch())
status = main(["run", "demo", "def", "--max-new-tokens", "4", "--codec", "delta", "--quiet"])
print("\\n", status, inside[0], sorted({name for name in begun if name.startswith("understudy.")}), file=sys.stderr)
"""


def test_a_first_run_finds_what_was_compiled(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "code"), "UNDERSTUDY_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, check=False, env=environment)
    status, processes, *compiled = done.stderr.splitlines()[-1].split(maxsplit=2)
    assert (done.returncode, status, processes) == (0, "0", "2"), done.stderr
    # small ones that are not worth a process; none of what takes long
    long = ("fitting", "hqq", "draft_product", "draft_layer", "exact_product", "attention_cpu", "likeliest", "residual")
    assert not [name for name in long if f"kernels.{name}'" in compiled[0]], compiled

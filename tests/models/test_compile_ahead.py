"""What a first run needs is compiled side by side where that is worth it, and what a run then uses is what was compiled."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import save
from understudy import LLM, sources, startup
from understudy.errors import CheckpointError
from understudy.models import compile_ahead as module
from understudy.models.compile_ahead import EACH, USES, compiling, shared_out


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of four processors where nothing is compiled, and a command's process."""
    monkeypatch.setattr(module, "on_disk", lambda kernel: False)
    monkeypatch.setattr(module, "cores", lambda: 4)
    monkeypatch.setattr(module, "spare_bytes", lambda: 100 * EACH)
    monkeypatch.setattr(startup, "owned", lambda: True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("prepares", [True, False])
def test_every_use_is_given_to_one_process(prepares: bool, dtype: torch.dtype) -> None:
    words = module._shares(dtype, prepares)
    names = [name for own in words for name in own[1:]]
    meant = {name for name, each in USES.items() if (prepares or not each.prepares) and each.dtype in (None, dtype)}
    assert sorted(names) == sorted(meant) and len([name for name in meant if name.startswith("exact products")]) == 1
    assert len(words) == 4 and {own[0] for own in words} == {str(dtype).removeprefix("torch.")}


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        (module, "cores", lambda: 1),
        (module, "spare_bytes", lambda: 2 * EACH - 1),
        (module, "on_disk", lambda kernel: True),
        (module, "on_disk", lambda kernel: None),
        (module, "on_disk", lambda kernel: kernel not in USES["choices"].kernels),
        (startup, "owned", lambda: False),
    ],
    ids=["one processor", "little memory", "all compiled", "no place for it", "little to compile", "a program of somebody else's"],
)
def test_none_is_started_where_it_is_not_worth_it(place: Any, name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, name, value)
    said: list[str] = []
    with compiling(torch.bfloat16, True) as started:
        started.wait(lambda what, done, total: said.append(what))
    assert not started.processes and not said


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_work_is_shared_out_evenly(count: int) -> None:
    lists = shared_out(list(USES), count)
    assert sorted(name for own in lists for name in own) == sorted(USES) and len(lists) == min(count, len(USES))
    loads = [sum(USES[name].seconds for name in own) for own in lists]
    assert max(loads) - min(loads) <= max(each.seconds for each in USES.values())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_each_use_runs(dtype: str) -> None:
    module.use(dtype, USES)


def test_what_compiles_is_waited_for_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROGRAM", "import time\ntime.sleep(1)")
    said: list[str] = []
    with compiling(torch.bfloat16, True) as started:
        assert len(started.processes) == 4
        started.wait(lambda what, done, total: said.append(what))
        assert [process.returncode for process in started.processes] == [0] * 4 and said == [module.WHAT]


def test_where_no_process_can_be_started_the_command_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: object, **options: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(module.subprocess, "Popen", refused)
    with compiling(torch.bfloat16, True) as started:
        started.wait(None)
    assert not started.processes


def test_either_kind_of_exact_products_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "on_disk", lambda kernel: kernel is module.exact_product._work_amx)
    assert not USES["exact products"].missing and USES["attention"].missing


def test_a_model_that_is_refused_ends_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "PROGRAM", "import time\ntime.sleep(600)")
    save(tmp_path / "model", "llama", torch.bfloat16)
    made: list[Any] = []
    plain = module.Compiling.__init__

    def noted(self: module.Compiling, words: Any) -> None:
        plain(self, words)
        made.extend(self.processes)

    def refused(*given: object) -> None:
        assert made and all(process.poll() is None for process in made)
        raise CheckpointError("refused")

    monkeypatch.setattr(module.Compiling, "__init__", noted)
    monkeypatch.setattr(sources, "prove", refused)
    with pytest.raises(CheckpointError, match="refused"):
        LLM(tmp_path / "model", device="cpu")
    assert len(made) == 4 and all(process.poll() is not None for process in made)


# A first run of the built-in model, which tells how many processes compiled and which kernels were compiled after that.
FIRST = """
import sys
from understudy import startup
startup.own()
with startup.lean():
    from understudy.models import compile_ahead as module
from numba.core import event
begun, counts = [], []
class Watch(event.Listener):
    def on_start(self, found): begun.append(found.data["dispatcher"].py_func.__module__)
    def on_end(self, found): pass
plain = module.Compiling.wait
def noted(self, report):
    counts.append(len(self.processes))
    plain(self, report)
    if self.processes:
        assert all(process.returncode == 0 for process in self.processes)
        event.register("numba:compile", Watch())
module.Compiling.wait = noted
module.cores = lambda: 2
from understudy.frontends import main
status = main(["run", "demo", "def", "--max-new-tokens", "4", "--codec", "delta", "--quiet"])
print("\\n", status, max(counts), sorted({name for name in begun if name.startswith("understudy.")}), file=sys.stderr)
"""


def test_a_first_run_finds_what_was_compiled(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "code"), "UNDERSTUDY_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, check=False, env=environment)
    status, processes, *compiled = done.stderr.splitlines()[-1].split(maxsplit=2)
    assert (done.returncode, status, processes) == (0, "0", "2"), done.stderr
    # small ones that are not worth a process; none of what takes long
    long = ("fitting", "hqq", "draft_product", "draft_layer", "exact_product", "attention_cpu", "likeliest", "residual")
    assert not [name for name in long if f"kernels.{name}'" in compiled[0]], compiled

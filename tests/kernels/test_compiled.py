"""Kernels run where no directory can be written to; what other sources gave is not used; bit casts are exact."""

import importlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy import errors
from understudy.kernels import attention_cpu, draft_product, exact_product, residual
from understudy.kernels.compiled import compiled, float_of, machine_code, stamp, word_of

KERNELS = Path(draft_product.__file__).parent

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from numba.core import caching
for kind in vars(caching).values():  # numba finds no place for machine code
    if hasattr(kind, '_locator_classes'):
        kind._locator_classes = []
import torch
import understudy.kernels.attention_cpu
from understudy.kernels.pack import block, unblock
weight = torch.randn(70, 40)
assert torch.equal(unblock(block(weight), 70), weight)
"""


@pytest.mark.slow
def test_nowhere_to_keep_machine_code() -> None:
    source = draft_product.__file__.rpartition("/understudy/")[0]
    result = subprocess.run([sys.executable, "-c", SCRIPT, source], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


KERNEL = """
from .compiled import compiled
from .constants import STEP

@compiled
def kernel(x):
    return x + STEP
"""


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is imported anew, as in a new process."""
    for name in [name for name in sys.modules if name.startswith("made_package")]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()


@pytest.fixture
def made_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a kernel that adds a constant of another file of its folder."""
    folder = tmp_path / "made_package" / "kernels"
    folder.mkdir(parents=True)
    for name in ("compiled", "code_cache", "instructions"):
        shutil.copy(KERNELS / f"{name}.py", folder)
    shutil.copy(errors.__file__, folder.parent)
    for place in (folder, folder.parent):
        (place / "__init__.py").touch()
    (folder / "user.py").write_text(KERNEL)
    monkeypatch.syspath_prepend(tmp_path)
    forget(monkeypatch)
    # Python's own cache goes by the time of a file in seconds
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return folder


def test_machine_code_of_other_sources_is_not_used(made_kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(step: int) -> tuple[int, int]:
        """What the kernel makes of 1, and how much of its machine code was on disk, as in a new process."""
        (made_kernels / "constants.py").write_text(f"STEP = {step}")
        forget(monkeypatch)
        kernel = importlib.import_module("made_package.kernels.user").kernel
        return kernel(1), sum(kernel.stats.cache_hits.values())

    assert [run(1), run(1), run(5), run(5), run(1)] == [(2, 0), (2, 1), (6, 0), (6, 1), (2, 1)]


# Two kernels that call a function of the same factory each, which is too long to be put where it is called.
FACTORY = f"""
from .compiled import compiled, part

def adder(number):
    def add(x, y):
        while y < 99:
            {"; ".join(f"y += x // (number + {i}) if y > x ** {i} else x % (number + {i})" for i in range(2, 30))}
        return y
    return part(add, number)

one, two = adder(1), adder(2)

@compiled
def ones(x):
    return one(x, 3) + one(x + 1, 4) + one(x + 2, x)

@compiled
def twos(x):
    return two(x, 3) + two(x + 1, 4) + two(x + 2, x)
"""

ASKED = """
import sys
from made_package.kernels import user
for name in sys.argv[1:]:
    print(name, getattr(user, name)(5), sum(getattr(user, name).stats.cache_hits.values()))
"""


def test_functions_of_one_factory_are_told_apart_by_a_process_that_loads_both(made_kernels: Path) -> None:
    """Each was compiled by another process, which counted the functions that it compiled from one on."""
    (made_kernels / "user.py").write_text(FACTORY)

    def asked(*names: str) -> list[str]:
        run = [sys.executable, "-c", ASKED, *names]
        done = subprocess.run(run, cwd=made_kernels.parent.parent, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    alone = asked("ones") + asked("twos")
    assert [line.rpartition(" ")[2] for line in alone] == ["0", "0"] and len({line.split()[1] for line in alone}) == 2
    for names in (("ones", "twos"), ("twos", "ones")):
        assert sorted(asked(*names)) == sorted(line[:-1] + "1" for line in alone)


def test_two_functions_for_kernels_have_two_names(made_kernels: Path) -> None:
    (made_kernels / "user.py").write_text(FACTORY.replace("adder(1), adder(2)", "adder(1), adder(1)"))
    with pytest.raises(AssertionError, match=r"called made_package.kernels.user.adder.<locals>.add\(1,\)"):
        importlib.import_module("made_package.kernels.user")


@pytest.mark.parametrize("kernels", [attention_cpu, draft_product, exact_product, residual])
def test_machine_code_on_disk_bears_the_stamp(kernels: Any) -> None:
    codes = [code for code in vars(kernels).values() if getattr(code, "__module__", "") == kernels.__name__]
    cached = [code for code in codes if getattr(getattr(code, "stats", None), "cache_path", None)]
    assert cached and all(code.py_func.__qualname__.count(stamp(KERNELS)) == 1 for code in cached)


def test_machine_code_for_c_bears_the_stamp_once() -> None:
    def nothing(argument: int) -> None:
        pass

    first, second = machine_code(nothing), machine_code(nothing)
    assert first and second
    assert nothing.__qualname__.count(stamp(KERNELS)) == 1


FILES = st.dictionaries(st.text("abc", min_size=1), st.binary(max_size=8), min_size=1, max_size=4)


@given(FILES, FILES)
def test_the_stamp_tells_any_sources_apart(first: dict[str, bytes], second: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as place:
        for name, files in (("first", first), ("second", second)):
            Path(place, name).mkdir()
            for stem, content in files.items():
                Path(place, name, f"{stem}.py").write_bytes(content)
        assert (stamp(Path(place, "first")) == stamp(Path(place, "second"))) == (first == second)


@compiled
def _there_and_back(words: object, made: object) -> None:
    for i in range(len(words)):  # type: ignore[arg-type]
        made[i] = word_of(float_of(words[i]))  # type: ignore[index]


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_casts_keep_every_bit(words: list[int]) -> None:
    given_, made = np.array(words, np.int64), np.zeros(len(words), np.int64)
    _there_and_back(given_, made)
    assert made.tolist() == words

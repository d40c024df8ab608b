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
    # Python's own cache goes by the time of a file in seconds
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return folder


def test_machine_code_of_other_sources_is_not_used(made_kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(step: int) -> tuple[int, int]:
        """What the kernel makes of 1, and how much of its machine code was on disk, as in a new process."""
        (made_kernels / "constants.py").write_text(f"STEP = {step}")
        for name in [name for name in sys.modules if name.startswith("made_package")]:
            monkeypatch.delitem(sys.modules, name)
        importlib.invalidate_caches()
        kernel = importlib.import_module("made_package.kernels.user").kernel
        return kernel(1), sum(kernel.stats.cache_hits.values())

    assert [run(1), run(1), run(5), run(5), run(1)] == [(2, 0), (2, 1), (6, 0), (6, 1), (2, 1)]


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

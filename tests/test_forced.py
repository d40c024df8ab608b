"""Parts of the contracts in processes that are held to fewer instructions than the processor has, and what a bad set is told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from understudy.codecs import CODECS
from understudy.kernels.instructions import SETS, VARIABLE, found

ROOT = Path(__file__).parents[1]
HERE = [each.name for each in SETS if each.serves(found())]
CODEC = "tests/test_contracts.py::test_lossless_with_every_codec"
# Of the contracts: drafts of the copy, compared with plain decoding, and every codec; and products whose bits are compared with a
# reference.
PARTS = (
    *(f"{CODEC}[{resident}-substitute-{codec}]" for resident in ("none", "auto") for codec in CODECS),
    "tests/kernels/test_bfdot.py",
    "tests/kernels/test_exact_product.py",
    "tests/kernels/test_float_product.py",
)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["avx2"])
def test_contracts_hold_with_fewer_instructions(name: str, tmp_path: Path) -> None:
    if name not in HERE[1:]:
        pytest.skip(f"{name} is all that this processor has: the whole suite runs with it" if name in HERE else f"needs {name}")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "COV"))}
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'temp'}", *PARTS]
    ran = subprocess.run(command, env={**environment, VARIABLE: name}, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0 and "[100%]" in ran.stdout, ran.stdout[-3000:] + ran.stderr[-1000:]


@pytest.mark.parametrize(("name", "said"), [("avx3", "is not known"), ("neon" if HERE[:1] != ["neon"] else "amx", "is more than")])
def test_a_set_that_cannot_be_used_is_one_line(name: str, said: str) -> None:
    command = [sys.executable, "-m", "understudy", "run", "demo", "x", "--max-new-tokens", "1"]
    ran = subprocess.run(command, env={**os.environ, VARIABLE: name}, capture_output=True, text=True)
    assert ran.returncode == 2 and said in ran.stderr and "Traceback" not in ran.stderr, ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1

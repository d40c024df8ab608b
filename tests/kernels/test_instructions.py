"""Kernels are made for this machine, or for the set of instructions that UNDERSTUDY_ISA names."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from understudy.errors import UsageError
from understudy.kernels import instructions
from understudy.kernels.instructions import SETS, VARIABLE, asked, best, found, has, told

X86 = [each for each in SETS if each.machine == "x86_64"]
ARM = [each for each in SETS if each.machine == "aarch64"]


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(VARIABLE, raising=False)
    asked.cache_clear()
    yield
    asked.cache_clear()


def test_each_set_serves_all_that_a_larger_one_does() -> None:
    lines = [each for each in X86 if each.name != "avxvnni"], X86[-3:], ARM
    for larger, smaller in (pair for line in lines for pair in pairwise(line)):
        assert larger.needs > smaller.needs and set(larger.features) >= set(smaller.features)


def test_the_best_set_is_the_largest_that_this_processor_has() -> None:
    here = [each for each in SETS if each.serves(found())]
    assert best() == (here[0] if here else None)
    assert all(each.machine == platform.machine() for each in here)


def test_features_are_this_machines_unless_numba_compiles_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions.numba_config, "CPU_NAME", "")
    monkeypatch.setattr(instructions.numba_config, "CPU_FEATURES", "")
    monkeypatch.setattr(instructions, "found", lambda: frozenset({"bmi2"}))
    assert has("bmi2") and has()
    assert not has("bmi2", "avx512bw") and not has("of the future")
    monkeypatch.setattr(instructions.numba_config, "CPU_NAME", "generic")
    assert not has("bmi2")


@pytest.mark.parametrize("chosen", X86, ids=lambda each: each.name)
def test_a_set_that_was_asked_for_is_all_there_is(chosen: instructions.InstructionSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions, "found", lambda: X86[0].needs | {"avxvnni"})
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setenv(VARIABLE, chosen.name)
    assert asked() == chosen and told() == f"{chosen.name} ({VARIABLE})"
    assert has("avx512bf16", "avx512bw") == (chosen.name in ("amx", "avx512bf16"))
    assert has("bmi2") == (chosen.name != "sse4")


@pytest.mark.parametrize(("name", "said"), [("avx3", "is not known"), ("avx512", "is more than this processor has")])
def test_a_set_that_cannot_be_used_is_refused(name: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions, "found", lambda: X86[-2].needs)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setenv(VARIABLE, name)
    with pytest.raises(UsageError, match=f"{VARIABLE}={name} {said}: choose one of avx2, sse4"):
        asked()


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from understudy.kernels import compiled, instructions

@compiled.compiled
def halved(numbers):
    for i in range(len(numbers)):
        numbers[i] *= 0.5

import numpy as np
numbers = np.full(64, 3.0, np.float32)
halved(numbers)
assert numbers.tolist() == [1.5] * 64
code = "".join(halved.inspect_asm().values())
print("zmm" in code, "ymm" in code, torch.backends.cpu.get_cpu_capability())
"""


@pytest.mark.skipif(all(not each.serves(found()) for each in X86[-2:]), reason="needs AVX2")
@pytest.mark.parametrize(("name", "expected"), [("sse4", "False False DEFAULT"), ("avx2", "False True AVX2")])
def test_machine_code_has_no_other_instructions(name: str, expected: str, tmp_path: Path) -> None:
    source = str(Path(instructions.__file__).parents[2])
    environment = {**os.environ, VARIABLE: name, "NUMBA_CACHE_DIR": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", SCRIPT, source], env=environment, capture_output=True, text=True)
    assert ran.stdout.strip() == expected, ran.stderr

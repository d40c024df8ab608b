"""Kernels run where no directory can be written to; bit casts are exact."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.kernels import draft_product
from understudy.kernels.compiled import compiled, float_of, word_of

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from numba.core import caching
for kind in vars(caching).values():  # numba finds no place for machine code
    if hasattr(kind, '_locator_classes'):
        kind._locator_classes = []
import torch
from understudy.kernels.pack import block, unblock
weight = torch.randn(70, 40)
assert torch.equal(unblock(block(weight), 70), weight)
"""


@pytest.mark.slow
def test_nowhere_to_keep_machine_code() -> None:
    source = draft_product.__file__.rpartition("/understudy/")[0]
    result = subprocess.run([sys.executable, "-c", SCRIPT, source], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


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

"""The kernel that tells whether kernels run."""

import pytest

pytest.importorskip("triton")

from understudy.kernels.gpu import INTERPRETED
from understudy.kernels.gpu.probe import probe


@pytest.mark.skipif(not INTERPRETED, reason="there is a GPU")
def test_the_probe_runs() -> None:
    probe("cpu")

"""One thread for torch: the suite shares its machine, and a tiny model gains nothing from more."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
# A busy machine makes any example slow, which says nothing of the code.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")
if not torch.cuda.is_available():  # before anything imports Triton: its kernels then run on the CPU, slowly
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Stores and measurements of the whole suite go to one new folder, never to the user's cache."""
    os.environ["UNDERSTUDY_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny bfloat16 Llama on disk."""
    from tests.tiny import save

    save(tmp_path / "model", "llama", torch.bfloat16)
    return tmp_path / "model"

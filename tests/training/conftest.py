"""One tiny target for all trainings."""

from pathlib import Path

import pytest
import torch

from tests.tiny import save


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("training") / "model"
    save(directory, "llama-tied", torch.bfloat16, num_hidden_layers=2)
    return directory


@pytest.fixture(scope="session")
def hidden_states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where trainings of one kind of taps share what the target reads."""
    return tmp_path_factory.mktemp("training") / "dump"

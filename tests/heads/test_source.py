"""A head comes from a directory of its own, as it was saved there."""

from pathlib import Path

import pytest
import torch

from tests.heads.golden import FACTS, LAYER, randomized
from understudy.errors import CheckpointError
from understudy.heads import HeadConfig
from understudy.heads.files import built, save
from understudy.heads.held import Holding
from understudy.heads.source import HeadDirectory

CONFIG = HeadConfig("eagle", FACTS, (-1,), layers=1, layer=LAYER)


def test_a_directory_tells_what_its_head_is_before_it_is_read(tmp_path: Path) -> None:
    head = randomized(built(CONFIG))
    save(head, tmp_path / "head")
    source = HeadDirectory.of(tmp_path / "head")
    assert source.config == CONFIG
    again = source.load(Holding(torch.bfloat16))
    assert torch.equal(again.state_dict()["fc.weight"], head.state_dict()["fc.weight"].bfloat16())


def test_a_directory_without_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no head in"):
        HeadDirectory.of(tmp_path / "none")

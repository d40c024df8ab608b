"""A training from a file of text to a head on disk."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.tiny import save
from tests.training.made import order, trained
from understudy.errors import UsageError
from understudy.heads import HEADS
from understudy.heads.files import load
from understudy.models.configuration import tokenizer_of
from understudy.training.kinds import KINDS


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("training") / "model"
    save(directory, "llama-tied", torch.bfloat16)
    return directory


@pytest.mark.parametrize("head", ["eagle:depth=2", "medusa:heads=2", "clover:heads=2", "clover2:heads=2", "eagle3"])
def test_a_head_learns(model: Path, tmp_path: Path, head: str) -> None:
    found, notes = trained(order(model, tmp_path, head))
    losses = [float(note.split("loss ")[1].split()[0]) for note in notes if "loss" in note]
    assert found.reached.best == pytest.approx(min(losses), abs=1e-4) and losses[-1] < 0.98 * losses[0]
    made = load(found.path, torch.float32)
    assert made.config.kind == head.partition(":")[0] and made.config.target.layers == 3
    assert not (tmp_path / "head.partial").exists()


def test_kinds_are_heads() -> None:
    assert set(KINDS) <= set(HEADS)


def test_a_draft_vocabulary_is_the_most_frequent_tokens(model: Path, tmp_path: Path) -> None:
    found, _ = trained(order(model, tmp_path, draft_vocab=20, epochs=1))
    head = load(found.path, torch.float32)
    assert head.token_map is not None and head.token_map.tolist() == sorted(set(head.token_map.tolist()))
    assert set(tokenizer_of(model)("fx \n").input_ids) <= set(head.token_map.tolist())


def test_an_order_is_checked_before_any_work(model: Path, tmp_path: Path) -> None:
    wanted = order(model, tmp_path)
    with pytest.raises(UsageError, match="no file"):
        trained(replace(wanted, data=(tmp_path / "missing.txt",)))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    with pytest.raises(UsageError, match="there already"):
        trained(replace(wanted, output=tmp_path / "full"))
    with pytest.raises(UsageError, match=r"No head 'eagel'. Did you mean 'eagle'\?"):
        trained(replace(wanted, head="eagel"))

"""A head that begins as a trained one."""

import json
from pathlib import Path

import pytest
import torch

from tests.heads.golden import FACTS, HIDDEN, LAYER, VOCABULARY, randomized
from tests.training.made import order, trained
from understudy.errors import UsageError
from understudy.heads import HeadConfig, Places, TargetWeights
from understudy.heads.eagle import Eagle
from understudy.heads.files import save
from understudy.training.grow import begin_as
from understudy.training.run import Trained


def eagle(layers: int) -> Eagle:
    return Eagle(HeadConfig("eagle", FACTS, (-1,), layers=layers, layer=LAYER, options={"first_norm": True}))


def test_a_deeper_head_says_at_first_what_the_trained_one_says(tmp_path: Path) -> None:
    trained_one, deeper = randomized(eagle(2)), eagle(4)
    save(trained_one, tmp_path / "head")
    deeper.start(TargetWeights(torch.randn(VOCABULARY, HIDDEN)))
    begin_as(deeper, tmp_path / "head")
    places = Places(torch.arange(5)[None], torch.ones(5, 5, dtype=torch.bool).tril()[None, None])
    inputs = torch.randn(1, 5, 1, HIDDEN), torch.randn(1, 5, HIDDEN), places
    assert torch.equal(deeper.begin(*inputs), trained_one.begin(*inputs))
    deeper.begin(*inputs).sum().backward()  # type: ignore[no-untyped-call]
    learned = {name for name, parameter in deeper.named_parameters() if parameter.grad is not None and bool(parameter.grad.any())}
    assert {"layers.2.mlp.down_proj.weight", "layers.3.self_attn.o_proj.weight", "layers.0.mlp.up_proj.weight"} <= learned


@pytest.fixture(scope="module")
def first(model: Path, hidden_states: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A head of two layers."""
    return trained(order(model, tmp_path_factory.mktemp("grow"), "eagle:depth=2", dump=hidden_states))[0]


def test_a_training_goes_on_with_a_head_and_counts_its_tokens(
    model: Path, hidden_states: Path, tmp_path: Path, first: Trained
) -> None:
    grown, new = (
        trained(order(model, tmp_path, "eagle:depth=3", dump=hidden_states, output=tmp_path / name, start=start, tokens=300))[0]
        for name, start in (("grown", first.path), ("new", None))
    )
    assert grown.reached.best < new.reached.best
    facts = json.loads((grown.path / "training.json").read_text())
    assert facts["start_tokens"] == first.reached.tokens > 0 and facts["tokens"] == first.reached.tokens + grown.reached.tokens


@pytest.mark.parametrize(
    ("head", "said"), [("eagle:depth=1", "more than the 1 that"), ("eagle3:depth=2", "another kind"), ("medusa", "another kind")]
)
def test_a_head_that_does_not_fit_is_refused_before_any_work(
    model: Path, tmp_path: Path, first: Trained, head: str, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        trained(order(model, tmp_path, head, start=first.path))
    assert not (tmp_path / "head").exists()

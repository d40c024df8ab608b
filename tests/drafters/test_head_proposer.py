"""A head proposes in a best-first search, whose levels hold nodes of several depths, on the processor and on a device."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import trained
from tests.drafters.test_head_runner import SIZE, VOCABULARY, eagle, made
from tests.tiny import opened, save
from understudy import SamplingParams
from understudy.devices import DEVICES
from understudy.drafters import Verified, spec_of
from understudy.drafters.head_proposer import HeadProposer
from understudy.drafters.head_state import HeadState
from understudy.heads import HeadConfig, TargetFacts
from understudy.sequence import TokenSequence
from understudy.tree import Nodes, TokenTree

PROMPT = [5, 99, 5, 12, 80, 5, 99, 5]
PARAMS = (
    SamplingParams(max_new_tokens=16, ignore_eos=True),
    SamplingParams(max_new_tokens=16, ignore_eos=True, temperature=0.8, seed=7),
)


def proposer_of(config: HeadConfig) -> tuple[HeadProposer, TokenSequence]:
    """A proposer that has read a text of five tokens."""
    _, runner, target = made(config)
    target.dtype = torch.float32
    sequence = TokenSequence(1, [1, 2, 3, 4])
    proposer = HeadProposer(HeadState(runner), target)
    hidden = torch.randn(4, len(config.taps), SIZE)
    chunk = TokenTree.chain(sequence.tokens)
    proposer.observe(Verified(sequence, chunk, torch.arange(4), torch.tensor([5]), False, hidden), ())
    target.cache.keep(1, torch.arange(4))
    sequence.tokens.append(5)
    return proposer, sequence


MEDUSA = HeadConfig("medusa", TargetFacts(SIZE, VOCABULARY), taps=(-1,), heads=4)
TREE = TokenTree.of([5, 7, 8, 9, 10, 11], [-1, 0, 0, 1, 2, 3])


@pytest.mark.parametrize("config", [MEDUSA, eagle()], ids=["medusa", "eagle"])
def test_a_level_may_hold_nodes_of_several_depths(config: HeadConfig) -> None:
    one_by_one, sequence = proposer_of(config)
    assert one_by_one.prepare([sequence]) == [4]
    wanted = torch.cat([one_by_one.forward(Nodes.of(TREE, 1, 4)[i : i + 1]) for i in range(6)])
    proposer, sequence = proposer_of(config)
    proposer.prepare([sequence])
    levels = [[0], [1, 2], [3, 4], [5]] if config.kind == "eagle" else [[0], [1], [2, 3], [4, 5]]
    for level in levels:
        found = proposer.forward(Nodes.of(TREE, 1, 4).picked(torch.tensor(level)))
        torch.testing.assert_close(found, wanted[level], rtol=1e-4, atol=1e-4)
    again = proposer.prepare([sequence])
    torch.testing.assert_close(proposer.forward(Nodes.of(TREE, 1, 4)[:1]), wanted[:1])
    assert again == [4] and wanted.shape == (6, VOCABULARY)


def test_parents_are_where_trees_put_them() -> None:
    nodes = Nodes.of(TREE, 1, 4)
    assert nodes.parents.tolist()[1:] == [4 + parent for parent in TREE.parents.tolist()[1:]]
    chain = Nodes.of(TokenTree.chain([1, 2, 3]), 0, 7)
    assert chain.parents.tolist() == [6, 7, 8]


def test_a_head_drafts_as_deep_as_it_has_parts(tmp_path: Path) -> None:
    proposer, _ = proposer_of(MEDUSA)
    assert proposer.deepest == 4 and proposer_of(eagle())[0].deepest > 100
    trained.save(trained.built(trained.config("medusa")), tmp_path / "head")
    spec: Any = spec_of(f"medusa:{tmp_path / 'head'}")
    assert (spec.deepest, spec.taps, spec.holds_head, spec.holds_substitute) == (4, (-1,), True, False)
    assert spec_of(f"medusa:{tmp_path / 'head'},width=2,depth=3").max_nodes == 7


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("proposing") / "model"
    save(path, "qwen2", torch.bfloat16)
    return path


@pytest.mark.parametrize("kind", ["eagle3", "medusa"])
def test_on_a_device_the_host_searches_and_the_head_lies_there(
    kind: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DEVICES, "fake", "tests.fake_device:without_triton")
    options: dict[str, Any] = {"codec": "raw", "context": 64, "device": "fake"}
    with opened(model, method="none", **options) as llm:
        plain = [llm.generate([PROMPT], params)[0].token_ids for params in PARAMS]
    trained.agreeing(tmp_path / kind, model, kind, [PROMPT + text for text in plain])
    with opened(model, method=f"{kind}:{tmp_path / kind}", **options) as llm:
        done = [llm.generate([PROMPT], params)[0] for params in PARAMS]
        assert llm.plan.items["draft head"] > 0 and llm.plan.items["draft levels"] == 0
    assert [c.token_ids for c in done] == plain
    assert all(c.stats.accepted > 6 for c in done)


def test_the_text_speaks_for_tokens_unless_it_may_not(model: Path, tmp_path: Path) -> None:
    trained.save(trained.built(trained.config("medusa", heads=1)), tmp_path / "head")
    for options, speaks in (("", True), (",guess=off", False), (",width=2,depth=1", False)):
        with opened(model, method=f"medusa:{tmp_path / 'head'}{options}", context=64) as llm:
            search: Any = llm.engine.drafter.search
            assert (search.suggester is not None) == speaks
            done = llm.generate([PROMPT], PARAMS[0])[0]
            tree = llm.engine.drafter.trees[0]
            assert tree.deepest <= 1 and bool(tree.favoured) <= speaks and len(done.token_ids) == 16

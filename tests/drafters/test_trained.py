"""Heads that a method names are found and checked before any work, and the plan counts what they take."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import trained
from tests.tiny import opened, save
from understudy import LLM, SamplingParams
from understudy.drafters import spec_of
from understudy.drafters.growing_tree import MOST_NODES
from understudy.drafters.trained import NamedHead
from understudy.errors import CheckpointError, UsageError
from understudy.heads import HeadConfig, TargetFacts
from understudy.heads.files import built
from understudy.heads.files import save as save_head
from understudy.heads.held import FewBits

PROMPT = [5, 99, 5, 12, 80, 5, 99, 5]
PARAMS = [SamplingParams(max_new_tokens=16, ignore_eos=True, temperature=t, seed=3) for t in (0.0, 0.8)]


def written(directory: Path, kind: str, **changes: Any) -> Path:
    save_head(built(trained.config(kind, **changes)), directory)
    return directory


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "model"
    save(path, "qwen2", torch.bfloat16)
    return path


def refused(model: Path, method: str, **options: Any) -> str:
    """What is said, in one line, before the model is prepared or planned for."""
    with pytest.raises((UsageError, CheckpointError)) as loading:
        LLM(model, method=method, memory="1GiB", context=64, **options)
    if not options:
        with pytest.raises((UsageError, CheckpointError)) as planning:
            LLM.plan_only(model, method=method, memory="1GiB", context=64)
        assert str(planning.value) == str(loading.value)
    assert "\n" not in str(loading.value)
    return str(loading.value)


def test_what_does_not_fit_is_refused_before_any_work(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("understudy.loading.prepare_source", None)
    wide = HeadConfig("medusa", TargetFacts(96, 256), taps=(-1,), heads=2)
    save_head(built(wide), tmp_path / "wide")
    said = refused(model, f"medusa:{tmp_path / 'wide'}")
    assert f"The head {tmp_path / 'wide'} is for a model with hidden states of 96 numbers" in said
    words = written(tmp_path / "words", "eagle", target=TargetFacts(64, 300))
    assert "a vocabulary of 300 tokens" in refused(model, f"eagle:{words}")
    deep = written(tmp_path / "deep", "eagle3", taps=(0, 1, 9), target=TargetFacts(64, 256))
    assert "reads hidden state 9" in refused(model, f"eagle3:{deep}")
    other = written(tmp_path / "other", "medusa")
    assert f"holds a head of kind medusa, not eagle: --method medusa:{other}" in refused(model, f"eagle:{other}")
    assert "depth=5 is too deep" in refused(model, f"medusa:{other},width=2,depth=5")
    assert "eagle needs the head that drafts: --method eagle:HEAD" in refused(model, "eagle")
    assert "No directory" in refused(model, f"eagle:{tmp_path / 'nowhere'}")
    with pytest.raises(UsageError, match="guess=on is for models that draft"):
        spec_of(f"medusa:{other},guess=on")


def test_a_head_of_other_weights_is_refused_by_their_fingerprint(model: Path, tmp_path: Path) -> None:
    fingerprint = LLM.prepare(model).source.fingerprint
    for own, fits in ((fingerprint, True), ("another", False)):
        head = written(tmp_path / own, "medusa", target=replace(trained.FACTS, fingerprint=own))
        if fits:
            LLM.plan_only(model, method=f"medusa:{head}", memory="1GiB", context=64)
        else:
            assert "weights with the fingerprint another" in refused(model, f"medusa:{head}")


@pytest.mark.parametrize("kind", trained.SHAPES)
def test_the_plan_counts_what_a_head_takes(kind: str, model: Path, tmp_path: Path) -> None:
    head = written(tmp_path / kind, kind)
    options: dict[str, Any] = {"method": f"{kind}:{head}", "rows": 2, "context": 128}
    with opened(model, **options) as llm:
        proposer: Any = llm.engine.drafter.proposer
        tensors = sum(tensor.nbytes for tensor in proposer.runner.head.state_dict().values())
        taken = tensors + proposer.cache.nbytes + proposer.states.nbytes
        assert proposer.states.shape[1] == MOST_NODES + 1
        counted = llm.plan.items["draft head"]
        assert taken < counted < taken + (1 << 20)
        assert (llm.plan.items["substitute"] > 0) == (llm.store.recipe.codec == "delta" or kind != "eagle3")
    foretold = LLM.plan_only(model, **options, memory="1GiB", resident="none").items["draft head"]
    assert foretold == counted


@pytest.fixture(scope="module")
def agreeing(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    """An EAGLE that was trained on the texts that the model writes after PROMPT, and those texts."""
    head = tmp_path_factory.mktemp("agreeing") / "eagle"
    with opened(model, method="none", context=128) as llm:
        plain = [llm.generate([PROMPT], params)[0].token_ids for params in PARAMS]
    trained.agreeing(head, model, "eagle", [PROMPT + text for text in plain])
    return head, plain


@pytest.mark.parametrize("method", ["eagle:{},guess=off,bits={}", "substitute:suggest=eagle:{},suggest_bits={}"])
def test_with_fewer_bits_texts_are_the_same_and_the_plan_counts_less(method: str, model: Path, agreeing: Any) -> None:
    head, plain = agreeing
    counted = []
    for bits in (16, 8, 4):
        with opened(model, method=method.format(head, bits), context=128) as llm:
            done = [llm.generate([PROMPT], params)[0] for params in PARAMS]
            runner: Any = (lambda p: getattr(p, "runner", None) or p.reader.runner)(llm.engine.drafter.proposer)  # type: ignore[attr-defined]
            kinds = {module.kind.name for module in runner.head.modules() if isinstance(module, FewBits)}
            counted.append(llm.plan.items["draft head"])
        assert kinds == ({f"int{bits}"} if bits < 16 else set())
        assert [one.token_ids for one in done] == plain
        assert all(one.stats.accepted > 6 for one in done), "the head drafts as well as before"
    assert counted[0] > counted[1] > counted[2]
    assert "bits must be one of 4, 8, 16" in refused(model, method.format(head, 5))


def test_bits_of_no_head_are_refused(model: Path) -> None:
    assert "suggest_bits= is for a head in front of the copy" in refused(model, "substitute:suggest_bits=4")


def test_a_head_of_the_hub_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = written(tmp_path / "head", "medusa")
    asked: list[tuple[str, bool]] = []

    def download(name: str, offline: bool, revision: str | None = None, wanted: Any = ()) -> Path:
        asked.append((name, offline))
        return head

    monkeypatch.setattr("understudy.heads.files.download", download)
    spec = spec_of("medusa:owner/head,width=2,depth=2").located(offline=True)
    assert asked == [("owner/head", True)] and spec.taps == (-1,) and spec.deepest == 2
    assert isinstance(spec.head, NamedHead) and spec.head.directory.path == head


def test_what_was_measured_of_a_head_is_where_drafts_start(model: Path, tmp_path: Path) -> None:
    head = written(tmp_path / "head", "medusa")
    (head / "pace.json").write_text(json.dumps({"understudy_pace": 1, "tokens_per_pass": 2.5}))
    with opened(model, method=f"medusa:{head}") as llm:
        policy: Any = llm.engine.drafter.policy
        assert policy.start.tokens_per_pass == 2.5
        assert len(llm.generate([[1, 2]], SamplingParams(max_new_tokens=3, ignore_eos=True))[0].token_ids) == 3

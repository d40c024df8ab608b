"""A training from a file to a head on disk, interrupted and not."""

import fcntl
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import save
from tests.training.made import order, trained
from understudy.errors import NumbersError, UsageError
from understudy.heads import HEADS
from understudy.heads.files import load
from understudy.heads.held import Holding
from understudy.llm import LLM
from understudy.models.stock.configuration import tokenizer_of
from understudy.training import checkpoints, loop
from understudy.training.answers import Answers
from understudy.training.kinds import KINDS
from understudy.training.order import Order
from understudy.training.run import train
from understudy.training.target import FrozenTarget


@pytest.mark.parametrize("head", ["eagle:depth=2", "medusa:heads=2", "clover:heads=2", "clover2:heads=2", "eagle3"])
def test_a_head_learns(model: Path, tmp_path: Path, head: str) -> None:
    found, notes = trained(order(model, tmp_path, head))
    losses = [float(note.split("loss ")[1].split()[0]) for note in notes if "loss" in note]
    assert found.reached.best == pytest.approx(min(losses), abs=1e-4) and losses[-1] < 0.98 * losses[0]
    made = load(found.path, Holding(torch.float32))
    assert made.config.kind == head.partition(":")[0] and made.config.target.layers == 2
    facts = json.loads((found.path / "training.json").read_text())
    assert facts["tokens"] == found.reached.tokens > 1000 and facts["measured"]["judged"]["tokens_per_pass"] >= 1
    assert found.worth.substitute is not None and found.worth.substitute >= 1
    assert any("hidden states take" in note for note in notes) and not (tmp_path / "head.partial").exists()


def test_a_head_learns_from_a_model_that_computes_in_another_type(model: Path, hidden_states: Path, tmp_path: Path) -> None:
    stored, _ = trained(order(model, tmp_path, dump=hidden_states))
    options = {"memory": "1GiB", "dtype": "float32"}
    exact, _ = trained(order(model, tmp_path, options=options, output=tmp_path / "exact"))
    assert exact.reached.best == pytest.approx(stored.reached.best, rel=0.02)
    assert weights(exact.path)["fc.weight"].dtype == torch.float32 != weights(stored.path)["fc.weight"].dtype


@pytest.mark.parametrize("feature", ["amx-bf16", "avx512bf16"])
def test_products_of_bfloat16_train_as_well(
    model: Path, hidden_states: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, feature: str
) -> None:
    """And a processor that has none of them multiplies in float32."""
    found = []
    for has in (True, False):
        monkeypatch.setattr(loop, "has", lambda *features, has=has: has and features == (feature,))
        head, _ = trained(order(model, tmp_path, dump=hidden_states, output=tmp_path / f"head-{has}"))
        found.append((head.reached.best, weights(head.path)))
    assert found[0][0] == pytest.approx(found[1][0], rel=0.02)
    assert any(not torch.equal(found[0][1][name], found[1][1][name]) for name in found[0][1])


def test_the_first_choices_of_a_text_are_found_once(
    model: Path, hidden_states: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many epochs there are, of every piece that a pruned head learns from or is measured with."""
    found = []
    real = FrozenTarget.first_choices

    def counted(self: FrozenTarget, features: torch.Tensor) -> torch.Tensor:
        found.append(features.flatten().tolist())
        return real(self, features)

    monkeypatch.setattr(FrozenTarget, "first_choices", counted)
    head, _ = trained(order(model, tmp_path, dump=hidden_states, epochs=3, draft_vocab=40))
    assert head.reached.step > 3 and len(found) > 3
    assert len({tuple(features) for features in found}) == len(found)


def test_kinds_are_heads() -> None:
    assert set(KINDS) <= set(HEADS)


def weights(path: Path) -> dict[str, Any]:
    return load_file(path / "model.safetensors")


def test_interrupted_and_resumed_gives_the_same_bits(
    model: Path, hidden_states: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = order(model, tmp_path, dump=hidden_states, epochs=2)
    whole, _ = trained(wanted)
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    monkeypatch.setattr(checkpoints, "RARELY", 0.0)
    wanted = replace(wanted, output=tmp_path / "again")
    stages: list[str] = []
    for stops in (3, 2):
        steps = [0]

        def report(stage: str, done: float, total: float, stops: int = stops, steps: list[int] = steps) -> None:
            stages.append(stage)
            steps[0] += stage == "training"
            if steps[0] == stops:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(wanted, report)
        assert (tmp_path / "again.partial" / "checkpoint.safetensors").exists()
    assert "reading the texts" not in stages, "hidden states that lie there are not read again"
    with pytest.raises(UsageError, match="holds a training with another --seed"):
        trained(replace(wanted, seed=5))
    resumed, _ = trained(wanted)
    first, second = weights(whole.path), weights(resumed.path)
    assert all(torch.equal(first[name], second[name]) for name in first) and set(first) == set(second)
    assert (whole.reached.best, whole.reached.step) == (resumed.reached.best, resumed.reached.step)


def test_weights_that_learn_at_some_steps_alone_go_on_as_they_were(
    model: Path, hidden_states: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later heads learn nothing from a text that ends before they guess: AdamW then counts no step for them."""
    wanted = order(model, tmp_path, "medusa:heads=3", dump=hidden_states, epochs=1)
    (tmp_path / "short.jsonl").write_text("".join(json.dumps({"text": f"f({letter}"}) + "\n" for letter in "abcdefghijkl"))
    wanted = replace(wanted, data=(tmp_path / "text.txt", tmp_path / "short.jsonl"), batch_tokens=1)
    steps = [0]

    def report(stage: str, done: float, total: float) -> None:
        steps[0] += stage == "training"
        if steps[0] == 9:
            raise KeyboardInterrupt

    whole, _ = trained(wanted)
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    monkeypatch.setattr(checkpoints, "RARELY", 0.0)
    wanted = replace(wanted, output=tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        train(wanted, report)
    kept = load_file(tmp_path / "again.partial" / "checkpoint.safetensors")
    counts = {int(tensor) for name, tensor in kept.items() if name.startswith("step.")}
    assert len(counts) > 1, "weights had different numbers of gradients"
    first, second = weights(whole.path), weights(trained(wanted)[0].path)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_head_with_weights_that_learn_nothing_is_trained(model: Path, tmp_path: Path) -> None:
    """A Clover-2 of one head has a gate between heads."""
    assert trained(order(model, tmp_path, "clover2:heads=1", tokens=300))[0].reached.step > 0


def test_no_number_stops_and_keeps_the_last_checkpoint(
    model: Path, hidden_states: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = order(model, tmp_path, dump=hidden_states, epochs=1)
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    monkeypatch.setattr(checkpoints, "RARELY", 0.0)
    real, calls = loop.loss_of, [0]

    def broken(*given: Any) -> torch.Tensor:
        if torch.is_grad_enabled():
            calls[0] += 1
        return real(*given) * (torch.nan if calls[0] == 3 else 1.0)

    monkeypatch.setattr(loop, "loss_of", broken)
    said = r"The loss of step 3 is no number\. The checkpoint of step 2 stays in .*head\.partial\."
    with pytest.raises(NumbersError, match=said):
        trained(wanted)
    monkeypatch.setattr(loop, "loss_of", real)
    found, _ = trained(replace(wanted, rate=1e-4))
    assert found.reached.step > 3 and all(bool(tensor.isfinite().all()) for tensor in weights(found.path).values())


def test_a_draft_vocabulary_is_the_most_frequent_tokens(model: Path, hidden_states: Path, tmp_path: Path) -> None:
    found, _ = trained(order(model, tmp_path, draft_vocab=20, dump=hidden_states, tokens=300))
    head = load(found.path, Holding(torch.float32))
    assert head.token_map is not None and head.token_map.tolist() == sorted(set(head.token_map.tolist()))
    assert set(tokenizer_of(model)("fx \n").input_ids) <= set(head.token_map.tolist())
    output = weights(found.path)["output.weight"]
    table = load_file(model / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(output, table[head.token_map]), "rows of the target's own head, which are not trained"


def test_the_model_answers_the_prompts_itself(model: Path, tmp_path: Path) -> None:
    wanted = order(model, tmp_path, own=True, epochs=1)
    answered: list[float] = []

    def stopped(stage: str, done: float, total: float) -> None:
        if stage == "answering the prompts":
            answered.append(done)
            if done >= 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(wanted, stopped)
    found, notes = trained(wanted)
    left = next(int(note.split()[0]) for note in notes if "left to answer" in note)
    total = next(int(note.split()[2]) for note in notes if "left to answer" in note)
    assert 0 < left <= total - 2 and found.reached.step > 0


def test_an_order_is_checked_before_any_work(model: Path, tmp_path: Path) -> None:
    wanted = order(model, tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    cases: list[tuple[Order, str]] = [
        (replace(wanted, data=(tmp_path / "missing.txt",)), "no file"),
        (replace(wanted, output=tmp_path / "full"), "there already"),
        (replace(wanted, dump=tmp_path / "head" / "dump"), "lies in .*head, where the head goes"),
        (replace(wanted, epochs=0.0), "learns nothing"),
        (replace(wanted, rate=float("nan")), "--rate must be"),
        (replace(wanted, context=4), "--context must be"),
        (replace(wanted, seed=1 << 32), "--seed must be from 0 to 4294967295"),
        (replace(wanted, head="eagel"), r"No head 'eagel'. Did you mean 'eagle'\?"),
        (replace(wanted, head="eagle:depth=0"), "depth must be 1 or more"),
        (replace(wanted, options={"memory": "600MiB"}, batch_tokens=1 << 22), "Training this head takes about"),
    ]
    for bad, said in cases:
        with pytest.raises(UsageError, match=said):
            trained(bad)
    assert (tmp_path / "full" / "precious").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"full", "text.txt"}, "nothing is left of what was refused"


def test_minutes_alone_end_a_training(
    model: Path, hidden_states: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a fast machine would end it sooner, since nothing is gained any more
    monkeypatch.setattr("understudy.training.run.TrainingLimits", partial(loop.TrainingLimits, patience=1 << 30))
    found, notes = trained(order(model, tmp_path, dump=hidden_states, epochs=0, minutes=0.01))
    assert found.reached.done and found.reached.step > 0 and found.reached.seconds >= 0.6
    assert sum("on texts kept apart" in note for note in notes) > 1
    few = order(model, tmp_path, dump=hidden_states, epochs=1e-9, output=tmp_path / "short")
    assert trained(few)[0].reached.step == 1


def test_a_head_that_another_process_made_meanwhile_is_not_trained_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def waited(path: Path, waiting: Callable[[], None], elsewhere: str) -> Iterator[None]:
        (tmp_path / "head").mkdir()
        (tmp_path / "head" / "config.json").touch()
        (tmp_path / "head.partial").rmdir()
        yield

    monkeypatch.setattr("understudy.training.run.only_process", waited)
    monkeypatch.setattr(LLM, "prepare", lambda *_, **__: pytest.fail("it is done again"))
    with pytest.raises(UsageError, match="there already"):
        trained(order(model, tmp_path))
    assert not (tmp_path / "head.partial").exists()


def test_a_head_appears_whole(model: Path, hidden_states: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed while it writes the head goes on as after any other kill, in the place of an empty directory too."""
    wanted = order(model, tmp_path, dump=hidden_states, epochs=1)
    wanted.output.mkdir()

    def killed(worth: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("understudy.training.run.asdict", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(wanted)
    assert not any(wanted.output.iterdir())
    found, _ = trained(wanted)
    assert json.loads((found.path / "training.json").read_text())["tokens"] > 0 and (found.path / "config.json").exists()
    assert not (tmp_path / "head.partial").exists()


def test_no_other_training_uses_the_same_hidden_states_meanwhile(model: Path, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    refused = dict.fromkeys(("reading the texts", "training"), 0)

    def report(stage: str, done: float, total: float) -> None:
        if stage in refused:
            with (dump / "lock").open() as file, pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            refused[stage] += 1

    train(order(model, tmp_path, dump=dump, epochs=1), report)
    assert all(refused.values()) and not (dump / "lock").exists()


def test_answers_of_another_model_or_seed_are_not_taken(model: Path, tmp_path: Path) -> None:
    save(tmp_path / "other", "llama", torch.bfloat16, num_hidden_layers=2)
    wanted = order(model, tmp_path, own=True, epochs=1)

    def stopped(stage: str, done: float, total: float) -> None:
        if stage == "answering the prompts" and done >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(wanted, stopped)
    advice = r"finish that training, delete .*head\.partial, or choose another directory with -o\."
    for changed, said in (({"model": str(tmp_path / "other")}, "is by the model"), ({"seed": 3}, "has changed")):
        with pytest.raises(UsageError, match=f"{said}.*{advice}"):
            trained(replace(wanted, **changed))


def test_prompts_without_an_answer_are_told(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Answers._asked

    def broken(self: Answers, number: int, prompt: Any) -> dict[str, Any]:
        asked = real(self, number, prompt)
        return {**asked, "body": {**asked["body"], "max_tokens": -1}} if number in bad else asked

    monkeypatch.setattr(Answers, "_asked", broken)
    bad = range(1)
    _, notes = trained(order(model, tmp_path, own=True, epochs=1))
    assert any(re.fullmatch(r"1 of \d+ prompts have no answer \(the first: .*max_tokens.*\)\.", note) for note in notes)
    bad = range(1000)
    with pytest.raises(UsageError, match=r"nothing to learn from: (\d+) of \1 prompts have no answer \(the first: .*max_tokens"):
        trained(order(model, tmp_path, own=True, output=tmp_path / "none"))

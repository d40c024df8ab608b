"""What is measured beside the encoding comes to those who wait, is not far ahead of them, and ends when they do."""

import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
import torch

from understudy.errors import CheckpointError
from understudy.quantizers.inputs import Inputs
from understudy.weights import measuring
from understudy.weights.checkpoint import Checkpoint
from understudy.weights.encoding import Encoding
from understudy.weights.measuring import Measuring, Note
from understudy.weights.prepare import prepare
from understudy.weights.recipe import Recipe

from .made import layout, tensors, write

SIZES = [40, 60, 60, 100, 30]


def _inputs(number: int) -> Inputs:
    return Inputs(torch.full((4,), float(number)), torch.zeros(4, 1))


class _Text:
    """Notes inputs one after another, and how many it has noted."""

    def __init__(self, count: int, fails_at: int | None = None, inputs: bool = True) -> None:
        self.noted, self.count, self.fails_at, self.inputs = 0, count, fails_at, inputs
        self.began = 0

    def __call__(self, note: Note) -> None:
        self.began += 1
        for number in range(self.count):
            if number == self.fails_at:
                raise CheckpointError("this weight cannot be read")
            note(_inputs(number) if self.inputs else None)
            self.noted += 1

    def stays_at(self, count: int) -> bool:
        """Whether it comes to `count`, and no further."""
        until = time.monotonic() + 10
        while self.noted < count and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(0.05)
        return self.noted == count


def test_a_text_is_ahead_by_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "LEAD", 101)
    text = _Text(len(SIZES))
    made = Measuring(text, SIZES)
    assert text.stays_at(0), "nobody has asked"
    found = made.of(1).result(10)
    assert found is not None and found.own[0] == 1
    # weights begin at 0, 40, 100, 160 and 260
    assert text.stays_at(3), "from the second weight on, less than 101 bytes"
    made.of(0)
    assert text.stays_at(3)
    made.of(2)
    assert text.stays_at(4)
    made.of(4)
    assert text.stays_at(5)
    assert text.began == 1
    made.close()


def test_one_that_needs_all_does_not_wait_for_the_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "LEAD", 1)
    made = Measuring(_Text(len(SIZES)), SIZES)
    assert [int(inputs.own[0]) for inputs in made.all() if inputs] == list(range(len(SIZES)))
    made.close()


def test_what_goes_wrong_comes_to_all_who_wait() -> None:
    made = Measuring(_Text(len(SIZES), fails_at=2), SIZES)
    assert made.of(1).result(10) is not None
    for index in (2, 4):
        with pytest.raises(CheckpointError, match="cannot be read"):
            made.of(index).result(10)
    with pytest.raises(CheckpointError, match="cannot be read"):
        made.all()
    made.close()


def test_one_that_measures_too_few_is_told() -> None:
    made = Measuring(_Text(2), SIZES)
    with pytest.raises(AssertionError, match="2 of 5 Linears"):
        made.of(3).result(10)
    made.close()


def test_a_weight_that_is_encoded_twice_does_not_wait_for_the_next_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pieces stand behind those of weights whose inputs come only once they are asked for."""
    monkeypatch.setattr(measuring, "LEAD", 1)
    made = tensors()
    first = layout(Checkpoint.open(write(tmp_path / "model", made))).linears[0].weight
    # bits that no codec makes smaller
    words = torch.randint(-(2**15), 2**15, made[first].shape, dtype=torch.int16, generator=torch.Generator().manual_seed(0))
    made[first] = torch.where(words & 0x7F80 == 0x7F80, 0, words).to(torch.int16).view(torch.bfloat16)
    checkpoint = Checkpoint.open(write(tmp_path / "hard", made))
    text = _Text(len(layout(checkpoint).linears), inputs=False)
    store = prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe(codec="delta"), measure=text)
    assert next(iter(store.linears.values())).codec == "raw" and text.noted == text.count


def test_it_ends_when_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "LEAD", 1)
    text = _Text(len(SIZES))
    made = Measuring(text, SIZES)
    found = made.of(1)
    assert text.stays_at(2)
    waiting = made._found[4]
    made.close()
    assert found.done()
    with pytest.raises(CancelledError):
        waiting.result(10)
    assert not any(thread.name == "understudy-measuring" for thread in threading.enumerate())
    Measuring(text, SIZES).close()


def test_weights_are_encoded_while_the_text_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(write(tmp_path / "model", tensors()))
    linears = layout(checkpoint).linears
    encoded = threading.Event()
    piece = Encoding.piece

    def watched(encoding: Encoding, *given: int) -> object:
        made = piece(encoding, *given)
        encoded.set()
        return made

    def measure(note: Note) -> None:
        note(None)
        assert encoded.wait(10), "the first weight waits for the second one's inputs"
        for _ in linears[1:]:
            note(None)

    free = prepare(checkpoint, layout(checkpoint), tmp_path / "free", Recipe())
    monkeypatch.setattr(Encoding, "piece", watched)
    store = prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe(), measure=measure)
    assert encoded.is_set()
    for name in ("substitute.bin", "residual.bin"):
        assert store.file(name).read_bytes() == free.file(name).read_bytes()


def test_a_text_that_cannot_be_read_ends_the_building(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write(tmp_path / "model", tensors()))

    def measure(note: Note) -> None:
        note(None)
        raise CheckpointError("a weight of the text's pass cannot be read")

    with pytest.raises(CheckpointError, match="the text's pass"):
        prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe(), measure=measure)
    assert not any(thread.name == "understudy-measuring" for thread in threading.enumerate())

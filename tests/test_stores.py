"""A Store that is there is taken where it fits, whatever would be made now."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import save
from understudy import LLM
from understudy.errors import StoreError
from understudy.options import MORE, USUAL, Options
from understudy.sources import locate, prepare_source
from understudy.stores import Made, left_open, prepared, stored_at
from understudy.weights.checkpoint import Checkpoint
from understudy.weights.store import Store
from understudy.weights.writing import lock_of


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    directory = tmp_path_factory.mktemp("stored")
    save(directory / "model", "llama", torch.bfloat16)
    return Checkpoint.open(directory / "model")


def options(tmp_path: Path, **given: Any) -> Options:
    return Options.of({"codec": "delta", **given}, {"UNDERSTUDY_CACHE": str(tmp_path / "cache")})


class Verdicts:
    """A ceiling under which these quantisers' Stores fit; more bits pay, or do not; and `suited` chooses this copy."""

    def __init__(self, *fitting: str, pays: bool = False, chooses: str = "int4") -> None:
        self.fitting, self.paying, self.chooses = fitting, pays, chooses

    def holds(self, store: Store, config: Any, options: Options) -> bool:
        assert options.recipe == store.recipe
        return store.recipe.quantizer in self.fitting

    def pays(self, more: Made, usual: Made, config: Any) -> bool:
        assert [one.recipe.quantizer for one in (*more, *usual) if isinstance(one, Store)] == [MORE, USUAL]
        return self.paying

    def suited(self, config: Any, layout: Any, options: Options) -> Options:
        return options if options.copy_chosen or not options.bits_left_open else options.with_copy(self.chooses)

    def check(self, *_: Any) -> None:
        pass

    check_preparing = check


def make(model: Checkpoint, tmp_path: Path, *bits: int) -> None:
    for each in bits:
        prepare_source(model, options(tmp_path, bits=each), None)


@pytest.mark.parametrize(
    ("there", "verdicts", "taken"),
    [
        # One alone is taken, whatever would be made.
        ((4,), Verdicts("int4", "int6", pays=True, chooses="int6"), "int4"),
        ((6,), Verdicts("int4", "int6", chooses="int4"), "int6"),
        # Of both it is the one that would be made, if it fits.
        ((4, 6), Verdicts("int4", "int6", pays=True), "int6"),
        ((4, 6), Verdicts("int4", "int6", pays=False), "int4"),
        ((4, 6), Verdicts("int4", pays=True), "int4"),
        # What does not fit is not taken, and not made again.
        ((6,), Verdicts("int4", chooses="int6"), None),
        ((4,), Verdicts(chooses="int4"), None),
        ((), Verdicts("int4", "int6"), None),
        # Nobody knows what fits: the usual one, or the other.
        ((4, 6), None, "int4"),
        ((6,), None, "int6"),
    ],
)
def test_a_store_that_is_there_is_taken_where_it_fits(
    there: tuple[int, ...], verdicts: Verdicts | None, taken: str | None, model: Checkpoint, tmp_path: Path
) -> None:
    make(model, tmp_path, *there)
    store, chosen = prepared(model, None, options(tmp_path), verdicts)
    assert (store.recipe.quantizer if store is not None else None) == taken
    assert store is None or chosen.recipe == store.recipe
    stores = len(list((tmp_path / "cache").glob("*/index.json")))
    made = prepare_source(model, options(tmp_path), None, ceiling=verdicts)
    assert made.recipe.quantizer == (taken or "int4")
    anew = len(list((tmp_path / "cache").glob("*/index.json"))) - stores
    assert anew == (taken is None and 4 not in there)


def test_bits_that_are_given_take_no_other_store(model: Checkpoint, tmp_path: Path) -> None:
    make(model, tmp_path, 6)
    anything = Verdicts("int4", "int6", pays=True)
    assert prepared(model, None, options(tmp_path, bits=4), anything)[0] is None
    assert prepared(model, None, options(tmp_path, quantizer="int4"), anything)[0] is None
    assert prepared(model, None, options(tmp_path).with_copy("int4"), anything)[0] is None, "chosen already"
    own = options(tmp_path, bits=6)
    assert prepared(model, None, own, anything)[0] is not None
    assert [one.recipe_quantizer for one in left_open(replace(own, text=None))] == ["int6"] * len(left_open(own))


def test_a_run_and_a_plan_take_the_store_that_is_there(model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    asked: dict[str, Any] = {"memory": "1GiB", "context": 64, "codec": "delta"}
    slow = {**asked, "resident": "none", "throttle": 2e7}
    assert [LLM.plan_only(model.path, **given).copy for given in (asked, slow)] == ["int4, head int8", "int6, head int8"]
    make(model, tmp_path, 6)
    for options_ in (asked, slow):
        plan = LLM.plan_only(model.path, **options_)
        assert plan.copy == "int6, head int8" and not any("foretold" in note for note in plan.notes)
    assert isinstance(locate(model.path, options(tmp_path)), Checkpoint)
    make(model, tmp_path, 4)
    assert [LLM.plan_only(model.path, **given).copy[:4] for given in (asked, slow)] == ["int4", "int6"]
    # Another machine has no Stores yet.
    laptop = "cpu:memory=16GB,disk=1GB/s,bandwidth=60GB/s"
    assert LLM.plan_only(model.path, machine=laptop, context=64, codec="delta").copy == "int4, head int8"
    with LLM(model.path, **slow) as llm:
        assert llm.store.recipe.quantizer == "int6"


def test_a_damaged_store_of_more_bits_is_not_missed_beside_the_usual_one(model: Checkpoint, tmp_path: Path) -> None:
    make(model, tmp_path, 6)
    more = next((tmp_path / "cache").glob("*int6*"))
    (more / "index.json").write_text("{")
    with pytest.raises(StoreError):
        prepared(model, None, options(tmp_path), None)
    make(model, tmp_path, 4)
    store, left = prepared(model, None, options(tmp_path), None)
    assert store is not None and store.recipe.quantizer == left.recipe_quantizer == USUAL


class Starts:
    """Two first starts at once, as two processes have them, which differ in what fits and in the copy that they would choose."""

    def __init__(self, model: Checkpoint, given: Options) -> None:
        self.model, self.given = model, given
        # What the second start says, and that it waits.
        self.said: list[str] = []
        self.waits = threading.Event()

    def first(self, verdicts: Verdicts, at: str) -> None:
        """Prepare, and go on from where it chooses (`at` "choosing") or has begun ("preparing") once the second one waits."""
        began = threading.Event()

        def pause() -> None:
            began.set()
            self.waits.wait(20)

        def suited(*given: Any) -> Options:
            if at == "choosing":
                pause()
            return Verdicts.suited(verdicts, *given)

        def report(what: str, done: float, total: float) -> None:
            if at == what and not began.is_set():
                pause()

        verdicts.suited = suited  # type: ignore[method-assign]
        self.thread = threading.Thread(target=prepare_source, args=(self.model, self.given, report), kwargs={"ceiling": verdicts})
        self.thread.start()
        assert began.wait(60)

    def second(self, verdicts: Verdicts, given: Options | None = None) -> Store:
        """Prepare too, while the first one is at it."""

        def report(what: str, done: float, total: float) -> None:
            self.said.append(what)
            if what.startswith("Waiting"):
                self.waits.set()

        try:
            return prepare_source(self.model, given or self.given, report, ceiling=verdicts)
        finally:
            self.waits.set()
            self.thread.join()


@pytest.mark.parametrize("at", ["choosing", "preparing"])
@pytest.mark.parametrize(("fits", "taken"), [(("int4", "int6"), "int6"), (("int4",), "int4")])
def test_of_two_first_starts_at_once_one_prepares_and_both_take_that_where_it_fits(
    at: str, fits: tuple[str, ...], taken: str, model: Checkpoint, tmp_path: Path
) -> None:
    starts = Starts(model, options(tmp_path))
    starts.first(Verdicts("int4", "int6", chooses="int6"), at)
    store = starts.second(Verdicts(*fits, chooses="int4"))
    assert store.recipe.quantizer == taken
    assert starts.said[0].startswith("Waiting for another process, which prepares ")
    made = sorted(path.parent.name.split("-")[1] for path in (tmp_path / "cache").glob("*/index.json"))
    assert made == (["int6"] if taken == "int6" else ["int4", "int6"])
    assert len([line for line in starts.said if line.startswith("Waiting")]) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.suffix in {".lock", ".choosing"}] == []


def test_two_first_starts_at_once_may_name_one_directory(model: Checkpoint, tmp_path: Path) -> None:
    """There was an error where they chose otherwise, after both had waited."""
    starts = Starts(model, options(tmp_path, output=tmp_path / "out" / "store"))
    starts.first(Verdicts("int4", "int6", chooses="int6"), "choosing")
    assert starts.second(Verdicts("int4", "int6", chooses="int4")).recipe.quantizer == "int6"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["store"]


def test_who_asks_for_other_bits_does_not_wait_for_what_is_prepared(model: Checkpoint, tmp_path: Path) -> None:
    starts = Starts(model, options(tmp_path))
    starts.first(Verdicts("int4", "int6", chooses="int6"), "preparing")
    assert starts.second(Verdicts("int3"), options(tmp_path, bits=3)).recipe.quantizer == "int3"
    assert not any(line.startswith("Waiting") for line in starts.said)


def test_who_asks_for_any_bits_waits_for_those_that_another_asked_for(model: Checkpoint, tmp_path: Path) -> None:
    starts = Starts(model, options(tmp_path, bits=6))
    starts.first(Verdicts("int6"), "preparing")
    store = starts.second(Verdicts("int4", "int6", chooses="int4"), options(tmp_path))
    assert store.recipe.quantizer == "int6" and len(list((tmp_path / "cache").glob("*/index.json"))) == 1


HOLDS = """
import fcntl, os, sys, time
held = [os.open(name, os.O_RDWR | os.O_CREAT) for name in sys.argv[1:]]
for each in held:
    fcntl.flock(each, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("killed", ["before", "while another waits"])
@pytest.mark.parametrize("held", ["choosing", "lock"])
def test_a_process_that_was_killed_keeps_nobody_waiting(killed: str, held: str, model: Checkpoint, tmp_path: Path) -> None:
    asked = options(tmp_path)
    more = stored_at(model, asked.with_copy(MORE))
    more.parent.mkdir(parents=True)
    file = more.parent / f"{model.fingerprint}.choosing" if held == "choosing" else lock_of(more)
    said: list[str] = []
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(file)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"

        def report(what: str, done: float, total: float) -> None:
            said.append(what)
            if what.startswith("Waiting"):
                other.kill()

        if killed == "before":
            other.kill()
            other.wait()
        try:
            store = prepare_source(model, asked, report, ceiling=Verdicts("int4", "int6"))
        finally:
            other.kill()
    assert store.recipe.quantizer == "int4"
    assert any(line.startswith("Waiting") for line in said) == (killed != "before")

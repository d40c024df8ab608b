"""The list of what transformers offers is made once, and again when anything that it was made of has changed."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from understudy.library_lists import Lists, kept

OFFERED: Lists = {frozenset(): {"models.a": {"A", "B"}}, frozenset({"torch", "vision"}): {"models.a.b": {"C"}, "models.d": set()}}


class Maker:
    """Makes lists, and counts how often."""

    def __init__(self, made: Any = OFFERED) -> None:
        self.made, self.times = made, 0

    def __call__(self, folder: Any, prefix: str | None = None) -> Any:
        self.times += 1
        return self.made


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    """A folder of models."""
    place = tmp_path / "models"
    (place / "a").mkdir(parents=True)
    (place / "a" / "modeling_a.py").write_text("__all__ = []")
    (place / "a" / "notes.txt").write_text("")
    return place


def test_lists_are_made_once(folder: Path, tmp_path: Path) -> None:
    make = Maker()
    for _ in range(2):
        assert kept(make, tmp_path / "cache")(folder, prefix="models") == OFFERED
    assert make.times == 1
    assert kept(make, tmp_path / "cache")(folder) == OFFERED
    assert make.times == 2


def _edit(folder: Path) -> None:
    file = folder / "a" / "modeling_a.py"
    file.write_text("__all__ = ['A']")


def _touch(folder: Path) -> None:
    os.utime(folder / "a" / "modeling_a.py", ns=(1, 1))


def _add(folder: Path) -> None:
    (folder / "a" / "modeling_b.py").write_text("")


def _add_folder(folder: Path) -> None:
    (folder / "b").mkdir()


def _remove(folder: Path) -> None:
    (folder / "a" / "modeling_a.py").unlink()


@pytest.mark.parametrize("change", [_edit, _touch, _add, _add_folder, _remove])
def test_what_changed_is_read_again(folder: Path, tmp_path: Path, change: Any) -> None:
    make = Maker()
    # dates that a change within the clock's step would not alter
    for place in [folder, *folder.rglob("*")]:
        os.utime(place, ns=(10**18, 10**18))
    kept(make, tmp_path / "cache")(folder)
    change(folder)
    for _ in range(2):
        assert kept(make, tmp_path / "cache")(folder) == OFFERED
    assert make.times == 2


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"files": ["."], "state": 0, "lists": []}', '{"files": 3}'])
def test_a_damaged_file_is_made_again(folder: Path, tmp_path: Path, damage: str) -> None:
    make = Maker()
    kept(make, tmp_path / "cache")(folder)
    (file,) = (tmp_path / "cache" / "lists").iterdir()
    file.write_text(damage)
    for _ in range(2):
        assert kept(make, tmp_path / "cache")(folder) == OFFERED
    assert make.times == 2


@pytest.mark.parametrize("made", [{"a": ["A"]}, {frozenset(): {"a": ["A"]}}, {frozenset(): "a"}, ["a"], {frozenset({3}): 1}])
def test_lists_of_another_form_are_not_kept(folder: Path, tmp_path: Path, made: Any) -> None:
    make = Maker(made)
    for _ in range(2):
        assert kept(make, tmp_path / "cache")(folder) is made
    assert make.times == 2
    assert not (tmp_path / "cache").exists()


def test_without_a_place_lists_are_made_each_time(folder: Path, tmp_path: Path) -> None:
    make = Maker()
    (tmp_path / "cache").write_text("a file")
    for _ in range(2):
        assert kept(make, tmp_path / "cache")(folder) == OFFERED
    assert make.times == 2


# How many of its models' files a command reads to import transformers, and what it says that those offer.
STARTED = """
import hashlib, sys
read = []
def see(event, arguments):
    if event == "open" and "transformers/models/" in str(arguments[0]) and str(arguments[0]).endswith(".py"):
        read.append(arguments[0])
sys.addaudithook(see)
from understudy import startup
if sys.argv[1] == "own":
    startup.own()
from understudy.frontends import opening
opening.llm()
import transformers
from transformers.utils import import_utils
names = hashlib.sha256(repr(sorted(dir(transformers))).encode()).hexdigest()
print(len(read), names, import_utils.define_import_structure.__module__)
"""


def started(whose: str, cache: Path) -> list[str]:
    """What STARTED says in a process of its own."""
    environment = {**os.environ, "UNDERSTUDY_CACHE": str(cache)}
    command = [sys.executable, "-c", STARTED, whose]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_second_start_reads_hardly_any_of_the_models_files(tmp_path: Path) -> None:
    first, names, function = started("own", tmp_path)
    assert int(first) > 500 and function == "transformers.utils.import_utils"
    again, *same = started("own", tmp_path)
    assert int(again) < 20 and same == [names, function]
    assert len(list((tmp_path / "lists").iterdir())) >= 1


def test_in_a_program_of_somebody_else_nothing_is_kept(tmp_path: Path) -> None:
    read, names, function = started("another", tmp_path)
    assert int(read) > 500 and function == "transformers.utils.import_utils"
    assert list(tmp_path.iterdir()) == []
    assert started("own", tmp_path)[1] == names

"""What was measured is found again; what cannot be read or written costs measuring again."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from understudy.plan.remembered import cache_directory, recall, remember


@dataclass(frozen=True)
class Speed:
    """What is remembered here."""

    rate: float


def made(fields: dict[str, float]) -> Speed:
    return Speed(**fields)


def test_it_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "speeds.json"
    assert recall(path, made) == {}
    remember(path, {"here": Speed(1.5), "there": Speed(2.5)})
    assert recall(path, made) == {"here": Speed(1.5), "there": Speed(2.5)}
    assert [file.name for file in path.parent.iterdir()] == ["speeds.json"]


@pytest.mark.parametrize("damaged", ["", "{", "[]", "[1]", '{"here": 1}', '{"here": {"speed": 1}}', '{"here": null}', "\udcff"])
def test_what_is_damaged_is_as_good_as_none(tmp_path: Path, damaged: str) -> None:
    path = tmp_path / "speeds.json"
    path.write_bytes(damaged.encode(errors="surrogateescape"))
    assert recall(path, made) == {}


def test_a_place_that_cannot_be_written_to_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    remember(tmp_path / "file" / "speeds.json", {"here": Speed(1.0)})
    (tmp_path / "speeds.json" / "full").mkdir(parents=True)
    remember(tmp_path / "speeds.json", {"here": Speed(1.0)})
    assert recall(tmp_path / "speeds.json", made) == {}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "speeds.json"]


def test_where_stores_live() -> None:
    assert cache_directory({"UNDERSTUDY_CACHE": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a")
    assert cache_directory({"XDG_CACHE_HOME": "/b"}) == Path("/b/understudy")
    assert cache_directory({}) == Path("~/.cache/understudy").expanduser()

"""The other commands, on an LLM that obeys the contract."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.frontends.conftest import ROOT, Run
from understudy import LLM
from understudy.frontends import doctor, main
from understudy.frontends.bench.plot import plot
from understudy.frontends.bench.rows import Bench, Row, times
from understudy.frontends.bench.table import table


def test_plan_prints_lines_or_json(understudy: Run) -> None:
    assert "resident     none" in understudy("plan", "--resident", "none").stdout
    assert json.loads(understudy("plan", "--json").stdout) == {"resident": "auto", "predicted": None}


def test_prepare_says_where_and_how_large(understudy: Run, tmp_path: Path) -> None:
    done = understudy("prepare", "demo", "--output", "store")
    assert (done.returncode, done.stdout) == (0, "") and "store" in done.stderr
    found = json.loads(understudy("prepare", "demo", "--json").stdout)
    assert Path(found["store"]).is_relative_to(tmp_path / "cache") and found["bytes"] == 2


def test_prepare_does_not_write_over_a_file(understudy: Run, tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    assert understudy("prepare", "demo", "--output", "store").returncode == 2


def test_export_does_not_write_among_other_files(understudy: Run, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    done = understudy("export", "store", "full")
    assert done.returncode == 2 and "not empty" in done.stderr


def test_chat_keeps_the_conversation(understudy: Run) -> None:
    done = understudy("chat", stdin="one\n\ntwo\n/reset\nthree\n/nonsense\n/exit\nfour\n")
    assert done.returncode == 0
    assert [line[0] for line in done.stdout.splitlines()] == ["1", "3", "1"]  # messages the LLM was shown
    assert "/reset forgets" in done.stderr


def test_chat_json_is_one_object_for_each_answer(understudy: Run) -> None:
    lines = understudy("chat", "--json", stdin="one\ntwo\n").stdout.splitlines()
    assert [json.loads(line)["text"][0] for line in lines] == ["1", "3"]


def test_bench_compares_methods(understudy: Run) -> None:
    done = understudy("bench", "--new-tokens", "9", "--temperatures", "0")
    assert done.returncode == 0 and "IDENTICAL over 3 methods" in done.stdout
    found = json.loads(
        understudy("bench", "--new-tokens", "9", "--methods", "none,substitute:width=2,depth=2", "--json").stdout
    )
    assert found["identical"] and [row["method"] for row in found["rows"][::2]] == ["none", "substitute:width=2,depth=2"]
    row = found["rows"][-1]
    assert row["times_none"] == 10 and len(row["token_ids"]) == 2
    assert row["limit_tokens_per_second"] == pytest.approx(row["link_peak"] / 1e7)
    assert [len(prompt) for prompt in found["prompts"]] == [64, 64]


def test_bench_compares_plans(understudy: Run) -> None:
    words = ("bench", "--new-tokens", "9", "--temperatures", "0", "--plan")
    done = understudy(*words)
    assert done.returncode == 0 and "IDENTICAL over 4 plans" in done.stdout and "predicted" in done.stdout
    rows = json.loads(understudy(*words, "--json").stdout)["rows"]
    assert [(row["method"], row["resident"]) for row in rows] == [
        ("substitute", kept) for kept in ("none", "residual", "whole", "auto")
    ]
    assert all(row["predicted"] == 1.5 * row["tokens_per_pass"] for row in rows)
    assert understudy(*words, "--resident", "none").returncode == 2


def test_bench_fails_when_a_method_writes_something_else(understudy: Run) -> None:
    done = understudy("bench", "--new-tokens", "9", "--temperatures", "0", UNDERSTUDY_FAKE="parting")
    assert done.returncode == 1 and "IDENTICAL" not in done.stdout
    assert "DIFFERENT: substitute at T=0, prompt 2, token 5: 6, but 5 from none" in done.stdout


def test_bench_draws(understudy: Run, tmp_path: Path) -> None:
    done = understudy("bench", "--new-tokens", "3", "--methods", "none", "--plot", "result.png")
    assert done.returncode == 0 and (tmp_path / "result.png").read_bytes()[:4] == b"\x89PNG"
    for place in ("nowhere/result.png", "result.nosuch", "."):
        done = understudy("bench", "--new-tokens", "3", "--methods", "none", "--plot", place)
        # Nothing was measured before.
        assert done.returncode == 1 and "tok/s" not in done.stderr and "Cannot write the picture" in done.stderr, done.stderr
    (tmp_path / "full.png").symlink_to("/dev/full")
    done = understudy("bench", "--new-tokens", "3", "--methods", "none", "--plot", "full.png")
    assert done.returncode == 1 and "No space left" in done.stderr and "IDENTICAL" in done.stdout, "what was measured is told"


@pytest.mark.parametrize(
    "words", [["prepare", "demo"], ["train", "--head", "eagle", "-o", "head"], ["scale", "-o", "study", "--no-speed"]]
)
def test_what_goes_on_where_it_was_says_so_at_ctrl_c(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*given: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(LLM, "prepare", stopped)
    (tmp_path / "text.txt").write_text("a text")
    assert main([*words, *([] if words[0] == "prepare" else ["--data", "text.txt"])]) == 130
    assert capsys.readouterr().err.endswith("stopped. The same command goes on from there.\n")


def row_of(method: str, resident: str = "", passes: int = 4) -> Row:
    numbers = (passes, 2.0 if passes else 0.0, 0.5 if passes else 0.0, *[0.1] * 4, 1e6, 1e9, 2e9, 1 << 30)
    return Row(method, 0.0, ((1, 2),), *numbers, resident=resident)


def test_a_bench_of_one_token_has_no_speed(capsys: pytest.CaptureFixture[str]) -> None:
    """All of it comes with the pass that reads the prompt."""
    rows = [row_of("none", passes=0), row_of("substitute", passes=0)]
    assert times(rows[1], rows) is None and rows[1].limit is None
    lines = table(Bench("demo", rows=rows))
    assert any(line.startswith("substitute") and "nan" not in line for line in lines)


def test_a_picture_of_plans_has_a_bar_for_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("understudy.frontends.bench.plot.save", lambda figure, path: drawn.append(figure))
    plot(Bench("demo", rows=[row_of("substitute", kept) for kept in ("none", "whole", "auto")]), tmp_path / "plans.png")
    bars = [patch.get_x() for patch in drawn[0].axes[0].patches if patch.get_height()]
    assert len(bars) == len(set(bars)) == 3 and "by plan" in drawn[0].axes[0].get_title()


def test_doctor_looks_around(command: Run, tmp_path: Path) -> None:
    store = tmp_path / "cache" / "some-store"
    store.mkdir(parents=True)
    (store / "index.json").touch()
    (store / "residual.bin").write_bytes(bytes(5 << 20))
    done = command("doctor")
    assert done.returncode == 0, done.stderr
    assert "1 prepared" in done.stdout and "disk speed       not" not in done.stdout and "torch" in done.stdout
    topics = [finding["topic"] for finding in json.loads(command("doctor", "--json").stdout)["findings"]]
    assert {"processor", "memory", "container limit", "GPU", "Stores", "disk speed"} <= set(topics)


def test_doctor_says_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "NEEDED", ("torch", "no_such_library"))
    missing = [finding for finding in doctor.software() if finding.missing]
    assert [finding.advice for finding in missing] == ["pip install no_such_library"]


def test_doctor_requires_what_the_project_requires() -> None:
    """The list of libraries is written twice, since doctor must run where the metadata is not."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {re.split(r"[<>=]", line)[0] for line in project["dependencies"]} == set(doctor.NEEDED)
    low, below = (".".join(map(str, bound)) for bound in doctor.TRANSFORMERS)
    assert f"transformers>={low},<{below}" in project["dependencies"]

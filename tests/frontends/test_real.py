"""The front ends on the real LLM, with a small random model: what the fake cannot promise."""

import json
import signal
import subprocess
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tests.frontends.conftest import REAL, Run, environment, hearing
from understudy import LLM
from understudy.frontends import main
from understudy.stats import Stats

PROMISED = {
    *("method", "new_tokens", "rounds", "mean_accepted", "drafted", "accepted", "tokens_per_second", "decode_seconds"),
    *("ttft_seconds", "bytes_streamed", "stream_seconds", "link_bytes_per_second", "limit_tokens_per_second"),
    *("peak_memory_bytes", "plan"),
}


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command in this process, where torch is loaded already; its stdout."""
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))

    def run(*words: str) -> str:
        status = main([*words])
        out, err = capsys.readouterr()
        assert status == 0, err
        return str(out)

    return run


@pytest.mark.parametrize("temperature", ["0", "0.8"])
def test_every_method_writes_the_same_tokens(said: Callable[..., str], tiny: Path, temperature: str) -> None:
    found = []
    for method in ("none", "ngram", "substitute"):
        words = ("--temperature", temperature, "--seed", "3", "--method", method, "--resident", "none", "--json")
        reply = json.loads(said("run", str(tiny), "def f(x):", "--max-new-tokens", "12", "--ignore-eos", *words))
        assert set(reply["stats"]) == {field.name for field in fields(Stats)} >= PROMISED
        assert reply["finish_reason"] == "length"
        assert reply["stats"]["method"] == method and reply["stats"]["bytes_streamed"] > 0
        found.append(reply["token_ids"])
    assert len(found[0]) == 12 and found[0] == found[1] == found[2]


def test_ctrl_c_keeps_what_was_generated(tiny: Path, tmp_path: Path) -> None:
    words = ["run", str(tiny), "def f(x):", "--max-new-tokens", "1500", "--ignore-eos", "--method", "none"]
    env = environment(tmp_path)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*REAL, *words], **pipes, env=env, preexec_fn=hearing) as running:
        assert running.stdout is not None
        first = running.stdout.read(1)
        running.send_signal(signal.SIGINT)
        rest, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert (first + rest).decode() and b"stopped" in err and b"tok/s" in err and b"Traceback" not in err


def test_chat_goes_on_after_an_answer(command: Run, tiny: Path) -> None:
    done = command("chat", str(tiny), "--max-new-tokens", "3", "--json", stdin="hello\nagain\n")
    assert done.returncode == 0, done.stderr
    replies = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(replies) == 2 and all(1 <= len(reply["token_ids"]) <= 3 for reply in replies)


def test_plan_adds_up(said: Callable[..., str], tiny: Path) -> None:
    plan = json.loads(said("plan", str(tiny), "--memory", "2GiB", "--resident", "none", "--json"))
    assert plan["budget"] == 2 << 30 and plan["used"] == sum(plan["items"].values()) <= plan["budget"]
    assert "streamed per pass" in said("plan", str(tiny), "--memory", "2GiB")


def test_bench_measures(said: Callable[..., str], tiny: Path) -> None:
    words = [
        "--prompts",
        "1",
        "--new-tokens",
        "6",
        "--temperatures",
        "0",
        "--prompt-tokens",
        "16",
        "--resident",
        "none",
    ]
    table = said("bench", str(tiny), *words, "--reference")
    assert "IDENTICAL over 3 methods" in table and "transformers in memory, greedy:" in table


def test_a_reference_that_cannot_be_is_told_and_costs_no_figures(
    said: Callable[..., str], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--methods", "none", "--prompts", "1", "--new-tokens", "2", "--temperatures", "0", "--reference"]
    store = LLM.prepare(tiny, output=tmp_path / "store")
    assert main(["bench", str(store.path), *words]) == 2
    out, err = capsys.readouterr()
    assert "is a Store: name the checkpoint instead" in err and "tok/s" not in out + err

    def refused(*given: Any) -> Any:
        raise OSError("no file named model.safetensors\nand more lines")

    monkeypatch.setattr("understudy.frontends.bench.reference._generate", refused)
    assert main(["bench", str(tiny), *words]) == 1
    out, err = capsys.readouterr()
    assert "IDENTICAL over 1 methods" in out
    assert "transformers cannot run the model: no file named model.safetensors. Leave --reference out." in err


def test_bench_holds_the_link_to_a_slower_disks_speed(said: Callable[..., str], tiny: Path) -> None:
    words = [*("bench", str(tiny), "--methods", "none", "--prompts", "1"), *("--new-tokens", "5", "--temperatures", "0")]
    words += ["--resident", "none"]
    free, held = (json.loads(said(*words, "--json", *more))["rows"][0] for more in ([], ["--throttle", "2MB"]))
    assert held["link_peak"] == 2e6 < free["link_peak"] and held["bytes_per_pass"] == free["bytes_per_pass"] > 0
    assert 0 < held["tokens_per_second"] <= 1.3 * held["limit_tokens_per_second"]
    assert held["token_ids"] == free["token_ids"]


def test_bench_compares_ways_of_batching(said: Callable[..., str], tiny: Path) -> None:
    words = [
        *("bench", str(tiny), "--batching", "ragged,eqspec,exspec", "--rows", "3", "--prompts", "7", "--prompt-tokens", "40"),
        *("--new-tokens", "20", "--methods", "ngram", "--resident", "none", "--temperatures"),
    ]
    table = said(*words, "0", "--alone", "2")
    assert "IDENTICAL over 4 ways" in table and "2 of 2" in table and "3 of 6" in table
    found = json.loads(said(*words, "0.6", "--json"))
    lines = {line["policy"]: line for line in found["batching"]}
    assert list(lines) == ["alone", "ragged", "eqspec", "exspec"] and found["identical"] and not found["differences"]
    assert len({tuple(map(tuple, line["token_ids"])) for line in lines.values()}) == 1
    for line in lines.values():
        assert line["identical"] == line["compared"] == 7 and line["bytes_streamed"] > 0
        assert line["tokens_per_second"] > 0 and line["times"][line["policy"]] == 1
        assert line["tokens_per_pass"] == line["tokens"] / line["passes"]
    assert lines["alone"]["rows_per_pass"] == 1 and all(1 < lines[name]["rows_per_pass"] <= 3 for name in ("ragged", "eqspec"))
    assert lines["exspec"]["pool"] == 6 and lines["exspec"]["rows"] == 3
    for name in ("eqspec", "exspec"):
        assert 0 < lines[name]["padding_share"] < 1 and lines[name]["align_seconds"] > 0 and lines[name]["aligned_bytes"] > 0
    assert all(lines[name]["rectangles"] == lines[name]["align_seconds"] == 0 for name in ("alone", "ragged"))

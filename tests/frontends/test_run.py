"""`run`: the text alone on stdout, or one JSON object; prompts from everywhere; Ctrl-C keeps what is there."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.frontends.conftest import FAKE, Run, environment, hearing
from tests.frontends.fake import WORDS

TEXT = "".join(WORDS)


def test_stdout_is_the_text_and_stderr_the_rest(understudy: Run) -> None:
    done = understudy("run", "demo", "def f():", "--max-new-tokens", "10")
    assert (done.returncode, done.stdout) == (0, TEXT)
    assert "10 tokens in" in done.stderr and "tokens per pass" in done.stderr and "GB/s" in done.stderr


def test_quiet_says_nothing(understudy: Run) -> None:
    done = understudy("run", "demo", "def f():", "--max-new-tokens", "10", "--quiet")
    assert (done.stdout, done.stderr) == (TEXT, "")


def test_json_is_exactly_one_object(understudy: Run) -> None:
    done = understudy("run", "demo", "def f():", "--json", "--max-new-tokens", "10")
    found = json.loads(done.stdout)
    assert found["text"] == TEXT and len(found["token_ids"]) == 10 and found["finish_reason"] == "length"
    assert found["stats"]["method"] == "substitute"


def test_options_stand_anywhere(understudy: Run) -> None:
    for words in (["--seed", "1", "demo", "x"], ["demo", "--seed", "1", "x"], ["demo", "x", "--seed=1"]):
        assert understudy("run", *words).returncode == 0


def test_a_prompt_may_look_like_an_option(understudy: Run) -> None:
    assert understudy("run", "demo", "--", "--help").returncode == 0


def test_the_demo_has_a_prompt_of_its_own(understudy: Run) -> None:
    done = understudy("run")
    assert done.returncode == 0 and "def " in done.stderr


def test_prompts_from_stdin_file_and_ids(understudy: Run, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("def f():\n")
    assert understudy("run", "org/name", stdin="def f():\n").returncode == 0
    assert understudy("run", "org/name", "-", stdin="def f():\n").returncode == 0
    assert understudy("run", "org/name", "--prompt-file", "prompt.txt").returncode == 0
    assert understudy("run", "org/name", "--prompt-ids", "1,2,3").returncode == 0
    assert understudy("run", "org/name", stdin="").returncode == 2


def test_a_prompt_that_is_not_utf8_is_refused(understudy: Run, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_bytes(b"abc\xff")
    done = understudy("run", "--prompt-file", "prompt.txt")
    assert done.returncode == 2 and "Byte 3 of prompt.txt" in done.stderr


def test_an_error_is_one_line_and_a_traceback_only_for_debugging(understudy: Run) -> None:
    done = understudy("run", "demo", "x", UNDERSTUDY_FAKE="broken")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "understudy: residual.bin is truncated. Prepare the model again.\n"
    assert "Traceback" in understudy("run", "demo", "x", UNDERSTUDY_FAKE="broken", UNDERSTUDY_DEBUG="1").stderr


def test_a_failed_transfer_keeps_what_was_right(understudy: Run) -> None:
    done = understudy("run", "demo", "x", UNDERSTUDY_FAKE="failing")
    assert (done.returncode, done.stdout) == (1, "".join(WORDS[:2]))
    assert done.stderr.splitlines()[-1].startswith("understudy: Reading residual.bin")


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    words = ["run", "demo", "x", "--max-new-tokens", "5000", "--quiet"]
    with subprocess.Popen(
        [*FAKE, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(tmp_path), text=True
    ) as running:
        assert running.stdout is not None and running.stderr is not None
        running.stdout.read(10)
        running.stdout.close()
        assert (running.wait(60), running.stderr.read()) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_behind_stdout_is_one_line(tmp_path: Path) -> None:
    for words in (["run", "demo", "x"], ["run", "demo", "x", "--json"]):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [*FAKE, *words, "--quiet"], stdout=full, stderr=subprocess.PIPE, env=environment(tmp_path), text=True
            )
        assert done.returncode == 1 and done.stderr.startswith("understudy: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_ctrl_c_keeps_what_was_generated(tmp_path: Path, as_json: bool) -> None:
    words = [*FAKE, "run", "demo", "x", *(["--json"] if as_json else [])]
    env = environment(tmp_path, UNDERSTUDY_FAKE="slow")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, **pipes, env=env, cwd=tmp_path, text=True, preexec_fn=hearing) as running:
        assert running.stdout is not None
        if as_json:
            while not (tmp_path / "begun").exists():
                assert running.poll() is None
                time.sleep(0.02)
        else:
            assert running.stdout.read(len(WORDS[0])) == WORDS[0]
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "stopped" in err and "tok/s" in err and "Traceback" not in err
    if as_json:
        found = json.loads(out)
        assert found["finish_reason"] == "cancelled" and TEXT.startswith(found["text"][: len(TEXT)])

"""Standard streams that are closed, broken or full: one line or none, the right exit status, never a traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.frontends.conftest import FAKE, REAL, environment

COMMANDS = {
    "run": [*FAKE, "run", "demo", "x"],
    "run --json": [*FAKE, "run", "demo", "x", "--json"],
    "chat": [*FAKE, "chat"],
    "plan": [*FAKE, "plan"],
    "prepare --json": [*FAKE, "prepare", "demo", "--json"],
    "bench": [*FAKE, "bench", "--new-tokens", "3", "--methods", "none", "--temperatures", "0"],
    "--help": [*REAL, "--help"],
    "run --help": [*REAL, "run", "--help"],
    "--version": [*REAL, "--version"],
}
FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


def through(shell: str, words: list[str], tmp_path: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command with its streams as the `shell` says, two lines on its standard input."""
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {shell}", "bash", *words],
        input="one\ntwo\n",
        capture_output=True,
        text=True,
        env=environment(tmp_path, **more),
        cwd=tmp_path,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_output_that_is_closed_is_one_line(name: str, tmp_path: Path) -> None:
    done = through('"$@" >&-', COMMANDS[name], tmp_path)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert done.stderr.splitlines()[-1] == "understudy: The output could not be written: standard output is closed."
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


@FULL
@pytest.mark.parametrize("name", COMMANDS)
def test_output_on_a_full_disk_is_one_line(name: str, tmp_path: Path) -> None:
    done = through('"$@" >/dev/full', COMMANDS[name], tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1] == "understudy: The output could not be written: No space left on device."
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_leaves_is_no_error(name: str, tmp_path: Path) -> None:
    done = through('"$@" | true', COMMANDS[name], tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "Exception" not in done.stderr, done.stderr
    assert "could not be written" not in done.stderr


@pytest.mark.parametrize("where", ["2>&-", pytest.param("2>/dev/full", marks=FULL), "0<&- 2>&-"])
@pytest.mark.parametrize("name", ["run", "prepare --json"])
def test_messages_that_cannot_be_written_are_lost_and_nothing_else(name: str, where: str, tmp_path: Path) -> None:
    good, done = (through(shell, COMMANDS[name], tmp_path) for shell in ('"$@"', f'"$@" {where}'))
    assert done.returncode == 0 and done.stdout == good.stdout != "" and done.stderr == ""


@pytest.mark.parametrize("where", ["2>&-", pytest.param("2>/dev/full", marks=FULL), "0<&- >&- 2>&-"])
def test_an_error_has_its_status_though_nobody_reads_it(where: str, tmp_path: Path) -> None:
    assert through(f'"$@" {where}', [*FAKE, "run", "demo", "x", "--seed", "x"], tmp_path).returncode == 2
    assert through(f'"$@" {where}', [*FAKE, "run", "demo", "x"], tmp_path, UNDERSTUDY_FAKE="broken").returncode == 1


def test_a_closed_output_that_is_not_needed_is_no_error(tmp_path: Path) -> None:
    assert through('"$@" >&-', [*FAKE, "prepare", "demo", "--output", "store"], tmp_path).returncode == 0
    assert through('"$@" 0<&-', [*FAKE, "chat"], tmp_path).returncode == 0, "a conversation in which nothing is said"


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    opened = "print(os.open('x', os.O_CREAT), file=open('n', 'w'))"
    program = f"import os; from understudy.frontends.streams import guard; guard(); {opened}"
    through('"$@" 0<&- >&- 2>&-', [sys.executable, "-c", program], tmp_path)
    assert int((tmp_path / "n").read_text()) > 2


@pytest.mark.slow
def test_doctor_and_the_real_model_end_alike(tmp_path: Path) -> None:
    for words in (["doctor"], ["run", "demo", "x", "--max-new-tokens", "2"]):
        done = through('"$@" >&-', [*REAL, *words], tmp_path)
        assert done.returncode == 1 and "Traceback" not in done.stderr and "closed" in done.stderr.splitlines()[-1]

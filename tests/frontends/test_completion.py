"""`understudy completion`: shells that have the script know all commands and options."""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import subprocess
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from understudy.frontends import COMMANDS, main


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The script of each shell."""
    found = {}
    for shell in ("bash", "zsh", "fish"):
        with redirect_stdout(StringIO()) as said:
            assert main(["completion", shell]) == 0
        found[shell] = said.getvalue()
    return found


def test_each_shell_is_told_all_commands_and_their_options(scripts: dict[str, str]) -> None:
    for shell, script in scripts.items():
        for name in COMMANDS:
            assert name in script, (shell, name)
        # fish writes long options without their dashes
        for option in ("served-model-name", "max-new-tokens", "stale"):
            assert option in script, (shell, option)


def test_bash_completes(scripts: dict[str, str], tmp_path: Path) -> None:
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    (tmp_path / "script").write_text(scripts["bash"])

    def completed(*words: str) -> list[str]:
        line = " ".join(f"'{word}'" for word in words)
        asked = f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}"
        call = f"_shtab_understudy understudy '{words[-1]}' '{words[-2]}'"
        code = f'source ./script; compopt() {{ :; }}; {asked}; {call}; printf "%s\\n" "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout.split()

    assert completed("understudy", "ser") == ["serve"]
    assert "--served-model-name" in completed("understudy", "serve", "--serve")
    assert completed("understudy", "run", "--resident", "who") == ["whole"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_can_read_it(scripts: dict[str, str], shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    (tmp_path / "script").write_text(scripts[shell])
    assert subprocess.run([shell, "-n", "script"], cwd=tmp_path, timeout=60, check=False).returncode == 0


def test_fish_completes(scripts: dict[str, str], tmp_path: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("there is no fish")
    (tmp_path / "script").write_text(scripts["fish"])

    def completed(line: str) -> list[str]:
        code = f"source script; complete -C '{line}'"
        words = ["fish", "--no-config", "-c", code]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
        return [found.split("\t")[0] for found in done.stdout.splitlines()]

    assert completed("understudy ser") == ["serve"]
    assert completed("understudy serve --served-m") == ["--served-model-name"]
    assert completed("understudy run demo --resident who") == ["whole"]


def test_zsh_completes_where_the_script_is_sourced(scripts: dict[str, str], tmp_path: Path) -> None:
    """Its completion needs a terminal: keys are pressed, and what it writes is read."""
    if shutil.which("zsh") is None:
        pytest.skip("there is no zsh")
    (tmp_path / "script").write_text(scripts["zsh"])
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execvpe("zsh", ["zsh", "-f", "-i"], {**os.environ, "TERM": "dumb", "ZDOTDIR": str(tmp_path), "PROMPT_EOL_MARK": ""})
    try:
        os.write(terminal, b"autoload -Uz compinit && compinit -u -D; source <(cat script); echo it is re''ady\n")
        assert "it is ready" in _until(terminal, "it is ready")
        for keys, found in (
            ("understudy ser\t", "understudy serve "),
            ("--served-m\t", "--served-model-name "),
            ("\x15understudy run demo --resident who\t", "--resident whole "),
        ):
            os.write(terminal, keys.encode())
            assert found in _until(terminal, found)
    finally:
        os.close(terminal)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _until(terminal: int, wanted: str, seconds: float = 30) -> str:
    """What a terminal says, up to `wanted` or until so much time is over."""
    said, end = "", time.monotonic() + seconds
    while wanted not in said and time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            said += os.read(terminal, 1 << 16).decode(errors="replace")
    return said


def test_without_shtab_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(__import__("sys").modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "understudy[completion]" in capsys.readouterr().err
    assert main(["completion", "tcsh"]) == 2

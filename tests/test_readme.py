"""What the README tells people to type works, offline, with what is in the package."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING

from tests.frontends.conftest import ROOT, environment
from tests.tiny import FAMILIES, MORE_FAMILIES, WRAPPERS

README = (ROOT / "README.md").read_text()
SHELL = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines() if line]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all commands, as a user has."""
    return tmp_path_factory.mktemp("readme")


def run(home: Path, *words: str, shell: bool = False) -> subprocess.CompletedProcess[str]:
    env = environment(home)
    return subprocess.run(words[0] if shell else words, shell=shell, cwd=home, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("line", SHELL)
def test_each_command_runs(line: str, home: Path) -> None:
    done = run(home, line.replace("understudy", f"{sys.executable} -m understudy", 1) + " < /dev/null", shell=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("program", PYTHON)
def test_each_program_runs(program: str, home: Path) -> None:
    done = run(home, sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_files_that_are_named_exist() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} names {target}"


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        assert set(re.findall(r"make (\w+)  |`make (\w+)`", page.read_text())) <= {
            pair for target in targets for pair in ((target, ""), ("", target))
        }


def test_the_page_of_models_names_those_that_the_tests_run() -> None:
    """`python tests/survey.py` writes the page."""
    page = (ROOT / "docs" / "models.md").read_text()
    running = set(re.findall(r"`([\w.-]+)`", page[page.index("## Kinds that run") : page.index("## Kinds that are refused")]))
    tried = {kind for kind in {**FAMILIES, **MORE_FAMILIES, **WRAPPERS} if kind in CONFIG_MAPPING}
    refused = re.findall(r"`([\w.-]+)`", page[page.index("## Kinds that are refused") :])
    assert len(tried) > 50 and tried <= running and running.isdisjoint(refused)

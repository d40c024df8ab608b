"""What README and docs/ tell people to type works, offline, with what is in the package; and whatever they name is there.

Fenced blocks say what they are by their language:

- `sh`: a command a line, each of which runs on the built-in model and prints something;
- `python`: a program that runs and prints something;
- `json`, `toml`: settings of another program, which must be valid;
- `text`: what cannot run here, such as a command that downloads a model.

Blocks that name http://127.0.0.1:8000 run against a server, for whose model NAME stands."""

import ast
import functools
import io
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING

from tests.frontends.conftest import ROOT
from tests.server.conftest import Running, loaded
from tests.tiny import FAMILIES, MIXTURES, MORE_FAMILIES, WRAPPERS, save
from understudy.frontends import main

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCES = [
    pytest.param(language, body, id=f"{page.name}-{number}-{language}")
    for page in PAGES
    for number, (language, body) in enumerate(re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(), re.S | re.M), 1)
]
ADDRESS = "http://127.0.0.1:8000"
# What the server's model is called, as in the README.
SERVED = "Qwen2.5-7B-Instruct"


def blocks(*languages: str, served: bool | None = None) -> list[object]:
    """The fenced blocks in one of `languages`; of these, those that need a server, those that need none, or (None) all."""
    found = [each for each in FENCES if each.values[0] in languages]
    return found if served is None else [each for each in found if (ADDRESS in str(each.values[1])) is served]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory in which all of them run, with one cache, as a user has."""
    place = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDERSTUDY_CACHE", str(place / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.chdir(place)
        yield place


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of a small random model that has a chat template, which the built-in one has not."""
    from understudy.server.app import create_app
    from understudy.server.settings import Settings

    directory = tmp_path_factory.mktemp("served")
    save(directory, "llama-tied", torch.bfloat16, max_position_embeddings=512)
    with loaded(directory, tmp_path_factory, rows=1, context=64) as llm:
        settings = Settings(model_name=SERVED)
        running = Running(create_app(llm, settings), settings)
        yield running
        running.stop()


def directed(body: str, server: Running) -> str:
    """`body` with the address and the model of `server`."""
    return body.replace(ADDRESS, server.url).replace("NAME", SERVED)


@pytest.mark.parametrize(("language", "body"), blocks("sh", served=False))
def test_each_command_runs(
    language: str, body: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for line in filter(None, body.splitlines()):
        program, *words = shlex.split(line, comments=True)
        assert program == "understudy", line
        monkeypatch.setattr("sys.stdin", io.StringIO())
        assert main(words) == 0, line
        assert capsys.readouterr().out, line


@pytest.mark.parametrize(("language", "body"), blocks("sh", served=True))
def test_each_request_is_answered(language: str, body: str, server: Running) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    for line in filter(None, body.splitlines()):
        done = subprocess.run(directed(line, server), shell=True, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout and '"error"' not in done.stdout, done.stdout


@pytest.mark.parametrize(("language", "body"), blocks("python", served=False))
def test_each_program_runs(language: str, body: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(body, "a page", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out


@pytest.mark.parametrize(("language", "body"), blocks("python", served=True))
def test_each_client_is_answered(language: str, body: str, server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(directed(body, server), "a page", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out


@pytest.mark.parametrize(("language", "body"), blocks("json", "toml"))
def test_settings_are_valid_and_name_this_server(language: str, body: str) -> None:
    read = json.loads if language == "json" else tomllib.loads
    assert read(body)
    assert set(re.findall(r"http://[\w.:]+", body)) <= {ADDRESS}


def test_every_block_says_what_it_is() -> None:
    for page in PAGES:
        opening = re.findall(r"^```(.*)$", page.read_text(), re.M)[::2]
        assert set(opening) <= {"sh", "python", "json", "toml", "text"}, f"{page.name}: {sorted(set(opening))}"


def test_files_that_are_named_exist() -> None:
    for page in [*PAGES, *(ROOT / "benchmarks").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} names {target}"


def test_the_site_has_no_dead_link(tmp_path: Path) -> None:
    """Built as `make docs` builds it: pages, anchors, the menu and what docstrings say of parameters are checked there."""
    from tools.pages import site

    site(tmp_path / "site")
    api = (tmp_path / "site" / "docs" / "api.html").read_text()
    for said in ("A loaded model that generates text", "Memory for everything: of the accelerator", "the likeliest tokens"):
        assert said in api
    assert 'id="understudy.llm.LLM.generate"' in api
    for path in (tmp_path / "site").rglob("*.html"):
        assert not re.search(r"<(script|link|img)[^>]*(src|href)=\"http", path.read_text()), f"{path.name} asks another host"


def test_a_dead_link_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mkdocs.exceptions import Abort
    from tools import pages

    gather, configured = pages.gather, pages.load_config

    def spoiled(place: Path) -> None:
        gather(place)
        page = place / "docs" / "plan.md"
        page.write_text(page.read_text() + "\n[nothing](architecture.md#nothing)\n")

    monkeypatch.setattr(pages, "gather", spoiled)
    # without docstrings, which take the most time
    monkeypatch.setattr(pages, "load_config", functools.partial(configured, plugins=[]))
    with pytest.raises(Abort, match="1 warning"):
        pages.site(tmp_path / "site")


@functools.cache
def messages() -> list[str]:
    """What the package may say: its strings, with … in the place of names and numbers."""
    found = []
    for path in (ROOT / "src" / "understudy").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_messages_that_are_quoted_are_those_of_the_program() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    rows = [row.split("|")[1] for row in page.splitlines() if row.startswith("|")]
    quoted = [text for row in rows for text in re.findall(r"`([^`]*…[^`]*)`", row)]
    assert len(quoted) > 15
    for text in quoted:
        pieces = [re.escape(piece) for piece in re.split(r"\s*…\s*", text) if piece]
        assert any(re.search(r".*".join(pieces), message, re.S) for message in messages()), f"the program never says {text!r}"


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        named = set(re.findall(r"(?:^    make |`make )([\w-]+)", page.read_text(), re.M))
        assert named <= targets, f"{page.name}: {sorted(named - targets)}"


def test_the_page_of_models_names_those_that_the_tests_run() -> None:
    """`python tests/survey.py` writes the page."""
    page = (ROOT / "docs" / "models.md").read_text()
    running = set(re.findall(r"`([\w.-]+)`", page[page.index("## Kinds that run") : page.index("## Kinds that are refused")]))
    tried = {kind for kind in {**FAMILIES, **MORE_FAMILIES, **MIXTURES, **WRAPPERS} if kind in CONFIG_MAPPING}
    refused = re.findall(r"`([\w.-]+)`", page[page.index("## Kinds that are refused") :])
    assert len(tried) > 50 and tried <= running and running.isdisjoint(refused)

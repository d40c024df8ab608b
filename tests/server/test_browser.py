"""The page as people use it, in a headless browser: Debian's chromium, driven by playwright. Skipped where either is missing."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from tests.server.conftest import Running, Start, scripted, until
from understudy import LLM

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")

# Without the last ones a browser asks for things elsewhere at every start.
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
# Milliseconds that something may take on a busy machine.
PATIENCE = 60_000


class Pace:
    """Passes of the engine, each of which waits for its turn, until they are let go."""

    def __init__(self, llm: LLM, monkeypatch: pytest.MonkeyPatch):
        self._turns = threading.Semaphore(0)
        self._free = threading.Event()
        step = llm.engine.step

        def waiting(*arguments: Any) -> Any:
            while not self._free.is_set() and not self._turns.acquire(timeout=0.05):
                pass
            return step(*arguments)

        monkeypatch.setattr(llm.engine, "step", waiting)

    def let(self, passes: int) -> None:
        """Let so many passes run."""
        for _ in range(passes):
            self._turns.release()

    def go(self) -> None:
        """Let all passes run from now on."""
        self._free.set()


@pytest.fixture
def pace(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pace]:
    made = Pace(llm, monkeypatch)
    yield made
    made.go()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # Not for the whole session: while playwright runs, its thread has an event loop, in which other tests could not run theirs.
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield running
        running.close()


class Tab:
    """One tab: what it asked for, and what went wrong in it."""

    def __init__(self, page: Any):
        self.page = page
        self.asked: list[str] = []
        self.wrong: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("console", lambda message: self.wrong.append(message.text) if "Security Policy" in message.text else None)

    def open(self, server: Running, path: str = "/") -> Tab:
        self.page.goto(f"{server.url}{path}")
        self.page.wait_for_selector("#server[data-kind=ready]")
        return self

    def ask(self, text: str) -> None:
        self.page.fill("#question", text)
        self.page.press("#question", "Enter")

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector))

    def wait(self, condition: str, *argument: Any) -> None:
        """Wait until a condition in JavaScript is true."""
        self.page.wait_for_function(condition, arg=argument[0] if argument else None)

    def finished(self, count: int = 1) -> None:
        """Wait until so many answers are there and none is under way."""
        self.wait(
            "count => document.querySelectorAll('.answer[aria-busy=false]').length === count"
            " && !document.querySelector('[aria-busy=true]')",
            count,
        )


Open = Callable[..., Tab]


@pytest.fixture
def tabs(browser: Any) -> Iterator[Open]:
    """Opens tabs; those of one test share a browser's storage. Nothing may go wrong in them, nor be asked for elsewhere."""
    person = browser.new_context(viewport={"width": 1280, "height": 800})
    opened: list[Tab] = []

    def begin(server: Running, path: str = "/") -> Tab:
        opened.append(Tab(person.new_page()))
        return opened[-1].open(server, path)

    yield begin
    person.close()
    assert [error for tab in opened for error in tab.wrong] == []
    assert [url for tab in opened for url in tab.asked if not url.startswith(("http://127.0.0.1:", "blob:http://127.0.0.1:"))] == []


def words(count: int) -> Sequence[str]:
    return [f"word{number} " for number in range(count)]


def test_an_answer_streams_with_its_marks_and_ends_as_text(
    start: Start, tabs: Open, llm: LLM, monkeypatch: pytest.MonkeyPatch, pace: Pace
) -> None:
    scripted(llm, monkeypatch, words(120))
    server = start()
    tab = tabs(server)
    tab.ask("Count")
    pace.let(2)
    tab.page.wait_for_selector(".answer .drafted")
    assert tab.text(".said") == "Count" and tab.text("h1") == "Count"
    # The first token is the exact model's own, and a line says so, not a colour alone.
    exact = tab.page.locator(".answer .exact").first
    assert exact.inner_text() == "word0 "
    assert exact.evaluate("node => getComputedStyle(node).textDecorationLine") == "underline"
    assert tab.page.locator(".answer").get_attribute("aria-busy") == "true"
    assert "tokens per pass" in tab.text(".figures") and "link" in tab.text(".figures")
    pace.go()
    tab.finished()
    assert tab.text(".markdown").split() == [f"word{number}" for number in range(120)]
    until(lambda: not llm.scheduler.running)

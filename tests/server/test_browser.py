"""The page as people use it, in a headless browser: Debian's chromium, driven by playwright. Skipped where either is missing."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from tests.server.conftest import Running, Start, scripted, until
from understudy import LLM
from understudy.models.cost import PassCost
from understudy.server import app as application

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
Axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed").Axe
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
    """Passes of the engine, each of which waits for its turn, until they are let go. A prompt is read in one of them: a machine
    that was busy in the passes before would read it in several."""

    def __init__(self, llm: LLM, monkeypatch: pytest.MonkeyPatch):
        self._turns = threading.Semaphore(0)
        self._free = threading.Event()
        step = llm.engine.step

        def waiting(*arguments: Any) -> Any:
            while not self._free.is_set() and not self._turns.acquire(timeout=0.05):
                pass
            return step(*arguments)

        monkeypatch.setattr(llm.engine, "step", waiting)
        monkeypatch.setattr(llm.engine, "cost", PassCost())

    def let(self, passes: int) -> None:
        """Let so many passes run."""
        for _ in range(passes):
            self._turns.release()

    def go(self) -> None:
        """Let all passes run from now on."""
        self._free.set()

    def hold(self) -> None:
        """Let none run from now on."""
        self._free.clear()


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

    def open(self, server: Running, ready: bool = True) -> Tab:
        self.page.goto(f"{server.url}/")
        if ready:
            self.page.wait_for_selector("#server[data-kind=ready]")
        return self

    def ask(self, text: str) -> None:
        self.page.fill("#question", text)
        self.page.press("#question", "Enter")

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector))

    def wait(self, condition: str, *argument: Any) -> None:
        """Wait until a condition in JavaScript is true; one with an argument is a function of it."""
        # A plain condition would be made a function by the page, which forbids that.
        function = condition if argument else f"() => {condition}"
        self.page.wait_for_function(function, arg=argument[0] if argument else None)

    def press_newest(self, name: str) -> None:
        """Press the button `name` of the newest answer."""
        self.page.locator(f".answer [aria-label='{name}']").last.click()

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
    person = browser.new_context(viewport={"width": 1100, "height": 800})
    opened: list[Tab] = []

    def begin(server: Running, ready: bool = True) -> Tab:
        opened.append(Tab(person.new_page()))
        return opened[-1].open(server, ready)

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


def test_stop_keeps_what_is_there_and_gives_the_place_back(
    start: Start, tabs: Open, llm: LLM, monkeypatch: pytest.MonkeyPatch, pace: Pace
) -> None:
    scripted(llm, monkeypatch, words(120), ["Once more"])
    tab = tabs(start())
    tab.ask("Count")
    pace.let(2)
    tab.page.wait_for_selector(".answer .exact")
    tab.page.keyboard.press("Escape")
    tab.page.wait_for_selector(".answer[aria-busy=false]")
    pace.go()
    until(lambda: not llm.scheduler.running and not llm.scheduler.waiting)
    assert tab.text(".note") == "Stopped." and tab.text(".markdown").startswith("word0")
    assert tab.page.evaluate("document.activeElement.id") == "question"
    assert "Stopped" in tab.text("#status")
    tab.press_newest("Regenerate")
    tab.wait("document.querySelector('.markdown')?.innerText === 'Once more'")
    tab.finished()
    assert tab.page.locator(".answer").count() == 1 and tab.page.locator(".note").count() == 0


def test_a_conversation_outlives_a_reload_even_in_the_middle_of_an_answer(
    start: Start, tabs: Open, llm: LLM, monkeypatch: pytest.MonkeyPatch, pace: Pace
) -> None:
    scripted(llm, monkeypatch, ["It is ", "**four**."], words(120))
    tab = tabs(start())
    tab.ask("Two and two?")
    pace.go()
    tab.finished()
    pace.hold()
    tab.ask("Count")
    pace.let(2)
    tab.page.wait_for_selector(".answer[aria-busy=true] .exact")
    tab.page.reload()
    tab.page.wait_for_selector(".note")
    pace.go()
    assert tab.page.locator(".said").all_inner_texts() == ["Two and two?", "Count"]
    assert tab.text(".markdown strong") == "four"
    assert tab.text(".note") == "Stopped. Cut off when the page was left."
    assert tab.page.locator(".markdown").last.inner_text().startswith("word0")
    until(lambda: not llm.scheduler.running)
    # how it came about is kept too
    tab.press_newest("How it came about")
    assert tab.page.locator(".answer:last-child .exact").count() > 0


def test_two_tabs_share_conversations_and_the_passes_of_the_engine(
    start: Start, tabs: Open, llm: LLM, monkeypatch: pytest.MonkeyPatch, pace: Pace
) -> None:
    scripted(llm, monkeypatch, words(400))
    server = start()
    one, two = tabs(server), tabs(server)
    one.ask("First")
    pace.let(1)
    one.page.wait_for_selector(".answer .exact")
    two.ask("Second")
    # a third one beside it, in the same tab
    two.page.click("#new")
    two.ask("Third")
    until(lambda: len(llm.scheduler.waiting) + len(llm.scheduler.running) == 3)
    # One that began before they came, and one in which they take part. More could be the first text's end: a pass may give it all
    # that a tree holds, and this text is three times that long.
    pace.let(2)
    two.page.wait_for_selector(".answer .exact")
    two.page.click("#open-engine")
    two.wait("document.querySelectorAll('.rows .taken').length === 3")
    names = two.page.locator(".rows .name").all_inner_texts()
    assert sorted(names) == ["Second", "Third", "another client"]
    assert "3 of 3 rows taken" in two.text("#batch")
    two.page.click("#close-engine")
    two.wait("document.querySelectorAll('#conversations button').length === 3")
    # the one that the other tab answers is followed here, and left alone
    two.page.get_by_role("button", name="First").click()
    two.wait("document.querySelector('h1').innerText === 'First'")
    two.ask("Me too")
    two.wait("document.querySelector('#toast-text').innerText === 'Another tab is answering in this conversation.'")
    pace.go()
    one.finished()
    two.finished()
    assert two.text(".markdown") == one.text(".markdown")
    assert two.page.locator(".said").count() == 1


def test_a_server_that_went_and_came_back_is_found_again(
    start: Start, tabs: Open, llm: LLM, monkeypatch: pytest.MonkeyPatch, pace: Pace
) -> None:
    scripted(llm, monkeypatch, words(120), ["Back again"])
    server = start()
    tab = tabs(server)
    tab.ask("Count")
    pace.let(2)
    tab.page.wait_for_selector(".answer .exact")
    server.kill(pace.go)
    tab.page.wait_for_selector(".note.failed")
    assert tab.text(".note") in ("Failed. The connection broke off.", "Failed. The request was ended: it was closed.")
    assert tab.text(".markdown").startswith("word0")
    tab.page.wait_for_selector("#server[data-kind=down]")
    start(port=server.port)
    tab.page.wait_for_selector("#server[data-kind=ready]")
    tab.press_newest("Regenerate")
    tab.wait("document.querySelector('.markdown')?.innerText === 'Back again'")


def test_a_server_that_hangs_is_told_and_found_again(start: Start, tabs: Open) -> None:
    """A connection that stays open and says nothing, as where a laptop was closed or the network was lost."""
    tab = tabs(start())
    tab.page.route("**/health", lambda route: None)
    tab.page.wait_for_selector("#server[data-kind=down]")
    assert tab.text("#server-text") == "The server does not answer; looking again"
    tab.page.unroute("**/health")
    tab.page.wait_for_selector("#server[data-kind=ready]")


HOSTILE = """Before <script>window.broken = 1</script><img src=x onerror="window.broken = 2">
<iframe srcdoc="<script>parent.broken = 3</script>"></iframe> <a href="javascript:broken=4" onclick="broken=5">raw</a>

[script](javascript:window.broken=6) [coded](&#106;avascript:window.broken=7) [data](data:text/html,<script>broken=8</script>)
[fine](https://example.org/page "title") <https://example.org/auto> ![seen](https://evil.example/pixel.png?secret)
![x](x" onerror="window.broken=9) <svg><style><img src=x onerror=broken=10></style></svg> <form action=https://evil.example>

```html"onload=alert(1)
<script>window.broken = 11</script>
```

<style>* { display: none }</style><base href="https://evil.example/"><meta http-equiv=refresh content="0;url=https://evil.example">
"""


def test_what_a_hostile_model_writes_neither_runs_nor_asks_elsewhere(
    start: Start, tabs: Open, llm: LLM, monkeypatch: pytest.MonkeyPatch, pace: Pace
) -> None:
    scripted(llm, monkeypatch, [HOSTILE[at : at + 9] for at in range(0, len(HOSTILE), 9)])
    tab = tabs(start())
    tab.ask("<img src=x onerror='window.broken = 0'>")
    pace.let(2)
    tab.page.wait_for_selector(".answer .exact")
    assert tab.page.locator("#messages :is(script, img, iframe, svg:not(button svg), form, style, base, meta)").count() == 0
    pace.go()
    tab.finished()
    tab.page.reload()
    tab.finished()
    assert tab.page.evaluate("window.broken") is None
    assert tab.page.locator(".markdown :is(script, img, iframe, svg:not(button svg), form, style, base, meta)").count() == 0
    links = tab.page.evaluate(
        "[...document.querySelectorAll('.markdown a')].map(a => [a.innerText, a.getAttribute('href'), a.rel])"
    )
    safe = "noopener noreferrer nofollow"
    assert [link for link in links if link[1]] == [
        ["fine", "https://example.org/page", safe],
        ["https://example.org/auto", "https://example.org/auto", safe],
        ["seen", "https://evil.example/pixel.png?secret", safe],
    ]
    # what it wrote is there to be read
    assert "<script>window.broken = 1</script>" in tab.text(".markdown") and "broken = 11" in tab.text(".markdown pre")
    assert tab.text(".said").startswith("<img src=x") and tab.text("h1").startswith("<img src=x")


PIECES = (
    *("<script>", "</script>", "<img src=x onerror=broken=1>", "](javascript:broken=1)", "[a", "![", "](", "<a href='", "'>"),
    *("`", "```", "\n", "<!--", "-->", "<svg", "<math><mtext>", "</p>", "&#x6a;", "javascript:", "&lt;", "\\", "<style>"),
    *("<![CDATA[", "]]>", "\x00", "|-|", "* ", ">", "<template>", "<noscript>", "data:text/html,", "\u202e", " onclick="),
    *('"', "=broken=2", "<form><input name=body>", "\t", "# ", "1. "),
)


def test_no_mixture_of_tags_and_marks_makes_anything_but_text_and_links(start: Start, tabs: Open) -> None:
    tab = tabs(start())
    drawn = random.Random(5)
    texts = ["".join(drawn.choices(PIECES, k=drawn.randint(1, 30))) for _ in range(400)]
    bad = tab.page.evaluate(
        """async texts => {
            const { rendered } = await import("./page/markdown.js");
            const plain = new Set(("p br hr strong em del code pre blockquote ul ol li h3 h4 h5 h6 " +
                "table thead tbody tr th td a").split(" "));
            const fine = new Set(["href", "align", "start", "target", "rel"]);
            return texts.filter(text => [...rendered(text).querySelectorAll("*")].some(node =>
                !plain.has(node.localName) || [...node.attributes].some(({ name, value }) =>
                    !fine.has(name) || (name === "href" && !/^(https?|mailto):/i.test(value)))));
        }""",
        texts,
    )
    assert bad == [] and tab.page.evaluate("window.broken") is None


@pytest.mark.parametrize("width", [320, 1280])
def test_nothing_is_wider_than_the_window_but_what_scrolls_in_its_box(
    start: Start, browser: Any, llm: LLM, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    word = "W" * 300
    answer = f"Text {word}\n\n```\n{'code ' * 200}\n```\n\n`{word}`\n\n- {word}\n\n|a|\n|-|\n|{word}|\n\nhttps://example.org/{word}\n"
    scripted(llm, monkeypatch, [answer])
    person = browser.new_context(viewport={"width": width, "height": 800})
    tab = Tab(person.new_page()).open(start())
    tab.ask(word)
    tab.finished()
    wide = (
        "[...document.querySelectorAll('#messages *')].filter(node => node.getBoundingClientRect().right > innerWidth"
        " && !node.parentElement.closest('pre, .wide-table')).map(node => node.outerHTML.slice(0, 60))"
    )
    assert tab.page.evaluate(wide) == []
    assert tab.page.evaluate("(node => node.scrollWidth <= node.clientWidth)(document.getElementById('scroll'))")
    assert tab.page.evaluate("(node => node.scrollWidth > node.clientWidth)(document.querySelector('pre'))")
    person.close()


def test_what_is_kept_and_makes_no_sense_does_not_stop_the_page(start: Start, tabs: Open) -> None:
    """Of an older version, or cut off: such a conversation is not listed, or what it lacks is as in a new one."""
    tab = tabs(start())
    question = {"role": "user", "content": "Old"}
    kept = {
        "a": {"id": "a", "messages": [question]}, "b": {"id": "b", "messages": [None]}, "c": 5,
        "d": {"id": "d", "messages": [{"role": "user", "content": None}]}, "e": {"id": "other", "messages": []},
    }  # fmt: skip
    tab.page.evaluate("kept => Object.keys(kept).forEach(id => "
        "localStorage.setItem(`understudy.conversation.${id}`, JSON.stringify(kept[id])))", kept)  # fmt: skip
    for id in kept:
        tab.page.goto(f"about:blank#{id}")
        tab.page.goto(f"{tab.asked[0]}#{id}")
        tab.page.wait_for_selector("#server[data-kind=ready]")
        assert tab.page.locator("#conversations button").all_inner_texts() == ["Old"]
        # Where there is none of this name, the last one is shown.
        assert tab.text(".said") == "Old"


@pytest.mark.parametrize("mark", ["> ", "1. "])
def test_what_is_nested_too_deep_is_shown_as_it_stands(
    start: Start, tabs: Open, llm: LLM, monkeypatch: pytest.MonkeyPatch, mark: str
) -> None:
    """A small model that repeats itself writes such texts, and its conversation must stay one that can be opened."""
    nested = mark * 20_000
    scripted(llm, monkeypatch, [nested], ["Fine."])
    tab = tabs(start())
    tab.ask("Quote")
    tab.finished()
    assert tab.text(".markdown").strip() == nested.strip()
    tab.page.reload()
    tab.page.wait_for_selector("#server[data-kind=ready]")
    assert tab.text(".markdown").strip() == nested.strip()
    tab.page.click("#new")
    tab.ask("And now?")
    tab.wait("document.querySelector('.markdown')?.innerText === 'Fine.'")


def test_editing_sampling_and_the_system_prompt_reach_the_model(
    start: Start, tabs: Open, llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = scripted(llm, monkeypatch, ["Fine."])
    tab = tabs(start())
    tab.page.click("#open-settings")
    tab.page.fill("#system", "Answer in rhymes")
    given = {"temperature": "0.7", "top_p": "0.9", "top_k": "30", "min_p": "0.05", "max_tokens": "50", "seed": "11"}
    for name, value in given.items():
        tab.page.fill(f"#{name}", value)
    tab.page.click("#close-settings")
    tab.ask("Fist question")
    tab.finished()
    tab.page.press("#question", "ArrowUp")
    tab.page.fill(".editing textarea", "First question")
    tab.page.press(".editing textarea", "Enter")
    tab.wait("document.querySelector('.said')?.innerText === 'First question'")
    tab.finished()
    params = asked[-1]["params"]
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.7, 0.9, 30, 0.05)
    assert (params.max_new_tokens, params.seed) == (50, 11)
    assert "Answer in rhymes" in asked[-1]["prompt"] and "First question" in asked[-1]["prompt"]
    assert "Fist" not in asked[-1]["prompt"] and "Fine." not in asked[-1]["prompt"]
    # a second turn brings the first answer, and a reload keeps the settings
    tab.page.reload()
    tab.ask("Second question")
    tab.finished(2)
    assert "Fine." in asked[-1]["prompt"] and asked[-1]["params"].seed == 11


def test_a_conversation_can_be_copied_exported_and_deleted(
    start: Start, tabs: Open, llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(llm, monkeypatch, ["Use `len`:\n", "```python\n", "len(x)\n", "```\n"])
    tab = tabs(start())
    tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.ask("How long?")
    tab.finished()
    copied = "navigator.clipboard.readText()"
    tab.page.click(".answer [aria-label=Copy]")
    until(lambda: tab.page.evaluate(copied) == "Use `len`:\n```python\nlen(x)\n```\n")
    tab.page.click("[aria-label='Copy code']")
    until(lambda: tab.page.evaluate(copied) == "len(x)\n")
    saved = {}
    for button in ("#save-markdown", "#save-json"):
        tab.page.click("#open-more")
        with tab.page.expect_download() as found:
            tab.page.click(button)
        saved[found.value.suggested_filename] = found.value.path().read_text()
    assert set(saved) == {"how-long.md", "how-long.json"} and "## Answer\n\nUse `len`" in saved["how-long.md"]
    messages = json.loads(saved["how-long.json"])["messages"]
    told = [(message["role"], message["content"][:9]) for message in messages]
    assert told == [("user", "How long?"), ("assistant", "Use `len`")]
    tab.page.click("#open-more")
    tab.page.click("#delete")
    tab.wait("document.querySelectorAll('#conversations button').length === 0")
    tab.page.click("#undo")
    tab.wait("document.querySelectorAll('#conversations button').length === 1")
    assert tab.text(".markdown pre").strip() == "len(x)"


def test_a_conversation_that_is_deleted_while_it_is_answered_stays_deleted(
    start: Start, tabs: Open, llm: LLM, monkeypatch: pytest.MonkeyPatch, pace: Pace
) -> None:
    scripted(llm, monkeypatch, words(120))
    tab = tabs(start())
    tab.ask("Count")
    pace.let(2)
    tab.page.wait_for_selector(".answer .exact")
    tab.page.click("#open-more")
    tab.page.click("#delete")
    pace.go()
    until(lambda: not llm.scheduler.running)
    # longer than the time between two times that an answer is kept
    tab.page.wait_for_timeout(1500)
    kept = "Object.keys(localStorage).filter(name => name.startsWith('understudy.conversation.')).length"
    assert tab.page.evaluate(kept) == 0 and tab.page.locator("#conversations button").count() == 0
    tab.page.click("#undo")
    tab.wait("document.querySelector('.note')?.innerText === 'Stopped.'")
    assert tab.page.evaluate(kept) == 1 and tab.text(".markdown").startswith("word0")


ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
    "{% endif %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
)


def test_a_question_after_one_without_an_answer_reaches_a_model_whose_turns_alternate(
    start: Start, tabs: Open, llm: LLM, monkeypatch: pytest.MonkeyPatch, pace: Pace
) -> None:
    monkeypatch.setattr(llm.tokenizer, "chat_template", ALTERNATING)
    asked = scripted(llm, monkeypatch, words(9), ["Fine."])
    tab = tabs(start())
    tab.ask("First")
    until(lambda: llm.scheduler.running or llm.scheduler.waiting)
    tab.page.click("#stop")
    tab.page.wait_for_selector(".note")
    pace.go()
    tab.ask("Second")
    tab.wait("document.querySelector('.markdown')?.innerText === 'Fine.'")
    assert "<user>First\n\nSecond\n<assistant>" in asked[-1]["prompt"]
    assert tab.page.locator(".said").all_inner_texts() == ["First", "Second"]


def test_a_look_that_breaks_off_is_not_the_last_one(start: Start, tabs: Open) -> None:
    tab = tabs(start())
    half = {"status": 200, "content_type": "application/json", "body": '{"model": "ti'}
    tab.page.route("**/understudy", lambda route: route.fulfill(**half))
    tab.page.wait_for_selector("#server[data-kind=down]")
    tab.page.unroute("**/understudy")
    tab.page.wait_for_selector("#server[data-kind=ready]")


def test_a_server_with_a_key_is_asked_with_it(start: Start, tabs: Open, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(llm, monkeypatch, ["Welcome"])
    server = start(api_keys=("secret",))
    tab = tabs(server, ready=False)
    tab.page.wait_for_selector("#key-dialog[open]")
    tab.page.fill("#key", "wrong")
    tab.page.press("#key", "Enter")
    tab.wait("document.querySelector('#key-note').innerText.includes('does not know')")
    tab.page.fill("#key", "secret")
    tab.page.press("#key", "Enter")
    tab.page.wait_for_selector("#server[data-kind=ready]")
    tab.ask("Hello")
    tab.finished()
    assert tab.text(".markdown") == "Welcome"
    assert tab.page.evaluate("JSON.stringify(localStorage)").count("secret") == 0


def shut_out(tab: Tab, *but: str) -> list[str]:
    """What axe-core finds on the page as it is, `but` for some rules: rules, and the elements that break them."""
    found = Axe().run(tab.page, options={"resultTypes": ["violations"]}).response["violations"]
    return [f"{rule['id']}: {node['target']}" for rule in found if rule["id"] not in but for node in rule["nodes"]]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_nobody_is_shut_out(
    start: Start, browser: Any, llm: LLM, monkeypatch: pytest.MonkeyPatch, pace: Pace, scheme: str, width: int
) -> None:
    """axe-core finds nothing on any view of the page, wide and narrow, light and dark."""
    answer = "# Lists\n\n* one\n* [two](https://example.org)\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```\ncode\n```\n> said `so`\n"
    scripted(llm, monkeypatch, [answer[at : at + 2] for at in range(0, len(answer), 2)])
    person = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, reduced_motion="reduce")
    tab = Tab(person.new_page()).open(start())
    assert shut_out(tab) == []
    tab.ask("What is there?")
    pace.let(2)
    tab.page.wait_for_selector(".answer .exact")
    assert shut_out(tab) == []
    pace.go()
    tab.finished()
    assert shut_out(tab) == []
    # nothing is wider than the window
    assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    if width < 1160:
        tab.page.click("#open-engine")
    tab.wait("document.querySelectorAll('#plan .place').length === 2")
    assert shut_out(tab) == []
    if width < 1160:
        tab.page.keyboard.press("Escape")
    tab.page.click("#open-settings")
    assert shut_out(tab) == []
    tab.page.keyboard.press("Escape")
    if width < 760:
        tab.page.click("#open-side")
        assert tab.page.evaluate("document.activeElement.id") == "close-side"
        # What lies behind the list cannot be reached, the main part of the page among it.
        assert shut_out(tab, "landmark-one-main", "page-has-heading-one") == []
        tab.page.keyboard.press("Escape")
        assert tab.page.evaluate("document.activeElement.id") == "open-side"
    person.close()
    assert tab.wrong == []


def test_everything_can_be_reached_by_the_keyboard(start: Start, tabs: Open, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(llm, monkeypatch, ["Fine."])
    tab = tabs(start())
    tab.ask("Hello")
    tab.finished()
    reached = []
    tab.page.evaluate("document.activeElement.blur()")
    for _ in range(40):
        tab.page.keyboard.press("Tab")
        focused = "(node => node.id || node.ariaLabel || node.innerText)(document.activeElement)"
        reached.append(tab.page.evaluate(focused))
    wanted = {"new", "Hello", "open-settings", "open-more", "open-engine", "question", "send"}
    wanted |= {"Edit question", "Copy", "Regenerate", "How it came about"}
    assert wanted <= set(reached), wanted - set(reached)


def test_of_several_replicas_the_page_says_which_one_it_shows(
    start: Start, tabs: Open, llm: LLM, pace: Pace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look may be answered by another one: no text is taken for this tab's, and no figures of two are compared."""
    names = itertools.cycle(["first", "second"])
    state = application.Endpoints.state

    async def of_either(self: Any, model: str | None = None) -> dict[str, Any]:
        self.replica = next(names)
        return await state(self, model)

    # The route is made of the handler's own signature.
    of_either.__annotations__ = {"model": str | None}
    monkeypatch.setattr(application.Endpoints, "state", of_either)
    tab = tabs(start())
    tab.ask("Hello")
    tab.page.click("#open-engine")
    tab.wait("document.querySelector('#batch .taken')")
    for name in ("first", "second"):
        tab.wait("name => document.querySelector('#batch .hint').innerText.includes(`replica ${name}, one of several`)", name)
    assert tab.text("#batch .taken .name") == "a text" and "texts in each pass" not in tab.text("#batch .hint")
    pace.go()
    tab.finished()
    assert tab.wrong == []

"""The page's files: what goes with them, who may have them, and that those of others are what they were."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from pathlib import Path

import httpx
import pytest

from tests.server.conftest import Running, Start
from understudy import LLM
from understudy.server.listen import Gate
from understudy.server.page import FOLDER, PAGE, POLICY
from understudy.server.settings import Settings

# What a file of the page names of others.
NAMED = re.compile(r"""(?:from|import) "\./([\w./-]+)"|(?:href|src)="(page/[\w./-]+)\"""")


def test_the_page_and_all_that_it_names_are_served(server: Running) -> None:
    found, left = set(), {"/"}
    while left:
        path = left.pop()
        found.add(path)
        answer = server.http.get(path)
        assert answer.status_code == 200 and answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        for module, file in NAMED.findall(answer.text) if "/vendor/" not in path else ():
            left |= {f"/page/{module}" if module else f"/{file}"} - found
    assert found == set(PAGE) - {"/page/index.html"} and len(found) > 10
    # Scripts and styles are files of this server, and no text becomes HTML but by DOMPurify.
    assert "unsafe" not in POLICY and "*" not in POLICY and "http" not in POLICY and "script-src 'self';" in POLICY
    assert "require-trusted-types-for 'script'; trusted-types dompurify" in POLICY


def test_a_file_that_the_browser_has_is_not_sent_again(server: Running) -> None:
    first = server.http.get("/")
    again = server.http.get("/", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304 and not again.content


def test_the_page_needs_no_key_and_the_api_does(start: Start) -> None:
    server = start(api_keys=("secret",))
    assert server.http.get("/").status_code == server.http.get("/page/main.js").status_code == 200
    assert server.http.get("/understudy").status_code == server.http.get("/v1/models").status_code == 401
    assert server.http.get("/understudy", headers={"Authorization": "Bearer secret"}).status_code == 200
    assert server.http.get("/page/../settings.py").status_code == 401
    assert server.http.get("/", headers={"Host": "evil.example"}).status_code == 403


def test_a_server_without_a_page_has_none(start: Start) -> None:
    server = start(page=False)
    assert server.http.get("/").status_code == server.http.get("/page/main.js").status_code == 404


def test_the_page_is_there_before_the_model(llm: LLM) -> None:
    async def asked(path: str, settings: Settings) -> httpx.Response:
        transport = httpx.ASGITransport(Gate(settings))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get(path)

    assert asyncio.run(asked("/", Settings("tiny"))).status_code == 200
    assert asyncio.run(asked("/understudy", Settings("tiny"))).status_code == 503
    assert asyncio.run(asked("/", Settings("tiny", page=False))).status_code == 503


def test_the_state_says_what_lies_where_and_who_runs(server: Running, llm: LLM) -> None:
    found = server.http.get("/understudy").json()
    assert found["plan"] == json.loads(json.dumps(llm.plan.to_dict())) and found["running"] == []
    assert found["replica"] is None
    before = found["figures"]
    server.post("/v1/completions", prompt="The quick brown fox", max_tokens=8)
    after = server.http.get("/understudy").json()["figures"]
    assert after["passes"] > before["passes"] and after["link_bytes"] > before["link_bytes"]


@pytest.mark.parametrize("entry", json.loads((FOLDER / "vendor" / "vendor.json").read_text()), ids=lambda entry: entry["file"])
def test_what_others_wrote_is_as_it_came(entry: dict[str, str]) -> None:
    assert hashlib.sha256((FOLDER / "vendor" / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
    assert (FOLDER / "vendor" / entry["licence_file"]).stat().st_size > 1000


def test_the_page_is_small_and_whole_lines_fit() -> None:
    own = [path for path in FOLDER.rglob("*") if path.is_file() and path.parent.name != "vendor"]
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 200_000
    named = {entry["file"] for entry in json.loads((FOLDER / "vendor" / "vendor.json").read_text())}
    assert {path.name for path in (FOLDER / "vendor").iterdir() if path.suffix == ".js"} == named
    for path in own:
        assert path.read_text().count("\n") < 480, path.name


def test_no_file_of_ours_makes_html_of_text_or_runs_it() -> None:
    forbidden = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|\son\w+=|style=")
    for path in (path for path in Path(FOLDER).glob("*") if path.suffix in (".js", ".html")):
        assert not forbidden.search(path.read_text()), path.name

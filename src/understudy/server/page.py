"""The page at `/`: files that go with the package, for people who talk to the model in a browser.

Nothing of it comes from elsewhere, no script or style stands in the HTML, and only DOMPurify may make HTML of a text, so what a
model writes cannot run (`Content-Security-Policy`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ..api.errors import ApiError
from .responses import error_response

FOLDER = Path(__file__).with_name("page_files")
KINDS: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types dompurify"
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Asked for anew each time, so that an old page never meets a new server; unchanged files are not sent again.
    "Cache-Control": "no-cache",
}


def _files() -> dict[str, Path]:
    """The files of the page by their paths."""
    found = {f"/page/{path.relative_to(FOLDER).as_posix()}": path for path in FOLDER.rglob("*") if path.suffix in KINDS}
    return {"/": FOLDER / "index.html", **found}


PAGE: Mapping[str, Path] = _files()


class PageFiles:
    """An ASGI application that answers for the page, and gives all else to `app`."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = PAGE.get(scope["path"]) if scope["type"] == "http" else None
        if path is None:
            await self.app(scope, receive, send)
        elif scope["method"] != "GET":
            refusal = ApiError(405, "Method Not Allowed", headers={"Allow": "GET"})
            await error_response(refusal, scope["path"])(scope, receive, send)
        else:
            await _answer(path, Headers(scope=scope))(scope, receive, send)


def _answer(path: Path, headers: Headers) -> Response:
    """The file at `path`, or 304 where the browser has it."""
    content = path.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    told = {**HEADERS, "ETag": tag}
    if headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=told)
    return Response(content, headers=told, media_type=KINDS[path.suffix])

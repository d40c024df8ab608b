"""What stands before the application: names, keys, kinds, methods, sizes and times of requests."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from tests.server.conftest import Running, Start

HEAD = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
ASKED = {"prompt": "x", "max_tokens": 1}


def answer(port: int, *pieces: bytes) -> bytes:
    """What the server says to these bytes until it closes the connection, or has nothing more to say for a while."""
    with closing(socket.create_connection(("127.0.0.1", port))) as client:
        client.settimeout(20)
        for piece in pieces:
            client.sendall(piece)
        found = b""
        while piece := client.recv(4096):
            found += piece
        return found


def test_keys_hosts_and_kinds_are_checked(start: Start) -> None:
    server = start(api_keys=("secret",))
    assert server.post("/v1/completions", **ASKED).status_code == 401
    assert server.http.post("/v1/completions", json=ASKED, headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert server.http.post("/v1/completions", json=ASKED, headers={"Authorization": "Bearer secret"}).status_code == 200
    assert server.http.post("/v1/completions", json=ASKED, headers={"x-api-key": "secret"}).status_code == 200
    assert server.http.get("/metrics").status_code == 401 and server.http.get("/health").status_code == 200
    key = {"x-api-key": "secret"}
    assert server.http.get("/health", headers={"Host": "evil.example"}).status_code == 403
    assert server.http.post("/v1/completions", content="{}", headers={**key, "content-type": "text/plain"}).status_code == 415
    kind = {**key, "content-type": "application/json"}
    packed = server.http.post("/v1/completions", content=b"{}", headers={**kind, "Content-Encoding": "gzip"})
    assert packed.status_code == 415 and "Content-Encoding: gzip" in packed.json()["error"]["message"]
    assert server.http.get("/health", headers={"Host": "LOCALHOST:1"}).status_code == 200
    assert server.http.post("/v1/completions", content=b"{", headers=kind).status_code == 400


def test_large_and_slow_bodies_are_refused(start: Start) -> None:
    server, hasty = start(body_limit=1000), start(receive_timeout=1)
    assert server.post("/v1/completions", prompt="x" * 2000).status_code == 413
    with socket.create_connection(("127.0.0.1", hasty.port)) as slow:
        slow.sendall(f"{HEAD}Content-Length: 50\r\n\r\n{{".encode())
        assert b" 408 " in slow.recv(200)
    with socket.create_connection(("127.0.0.1", server.port)) as large:
        large.sendall(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n7d0\r\n".encode() + b"x" * 2000 + b"\r\n0\r\n\r\n")
        assert b" 413 " in large.recv(200)


def test_a_body_that_is_far_too_large_is_not_read(start: Start) -> None:
    server = start(body_limit=1000)
    # one that waits for leave, one that is not sent at all, and one whose size nobody told
    for head in ("Content-Length: 2000\r\nExpect: 100-continue\r\n\r\n", "Content-Length: 9000\r\n\r\n"):
        found = answer(server.port, f"{HEAD}{head}".encode())
        assert found.startswith(b"HTTP/1.1 413 ") and b"larger than 1000 bytes" in found
    chunk = b"3e8\r\n" + b"x" * 1000 + b"\r\n"
    assert answer(server.port, f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode(), chunk * 5).startswith(b"HTTP/1.1 413 ")


def test_a_head_that_does_not_arrive_closes_the_connection(start: Start) -> None:
    server = start(receive_timeout=1)
    assert answer(server.port) == b""
    assert answer(server.port, b"GET /health HTTP/1.1\r\nHost: loc") == b""
    # the second request of a connection too
    whole = b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n"
    found = answer(server.port, whole + b"GET /ver")
    assert found.count(b"HTTP/1.1 200") == 1


def test_drops_of_a_head_do_not_keep_a_connection(start: Start) -> None:
    server = start(receive_timeout=0.5)
    with closing(socket.create_connection(("127.0.0.1", server.port))) as client:
        client.settimeout(0.05)
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        for _ in range(400):
            try:
                client.sendall(b"a: b\r\n")
                assert client.recv(10) == b""
                break
            except TimeoutError:
                continue
            except OSError:
                break
        else:
            pytest.fail("400 drops were taken")


def test_methods_that_a_path_does_not_have_are_told_in_the_form_of_errors(server: Running) -> None:
    for method, path, allowed in (
        ("PUT", "/v1/models", "GET"),
        ("DELETE", "/v1/chat/completions", "POST"),
        ("GET", "/v1/chat/completions", "POST"),
        ("OPTIONS", "/v1/chat/completions", "POST"),
        ("OPTIONS", "/health", "GET"),
        ("PUT", "/", "GET"),
    ):
        refused = server.http.request(method, path)
        assert refused.status_code == 405 and refused.headers["allow"] == allowed
        assert refused.json()["error"]["type"] == "invalid_request_error"
    missing = server.http.get("/v2")
    assert missing.status_code == 404 and missing.json()["error"]["type"] == "not_found_error"


def test_head_is_get_without_a_body(server: Running) -> None:
    for path in ("/health", "/v1/models", "/metrics", "/nowhere"):
        told, whole = server.http.head(path), server.http.get(path)
        assert told.status_code == whole.status_code and told.content == b""
        assert told.headers["content-type"] == whole.headers["content-type"]
    # the connection goes on with the next request
    assert server.http.get("/health").json() == {"status": "ok"}


def test_pages_may_call_only_where_their_origin_is_named(start: Start) -> None:
    page = {"Origin": "https://page.example"}
    asks = {**page, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    closed = start()
    assert not any("access-control" in name for name in closed.http.get("/health", headers=page).headers)
    assert closed.http.options("/v1/completions", headers=asks).status_code == 405
    server = start(origins=("https://page.example",), api_keys=("secret",))
    asked = server.http.options("/v1/completions", headers=asks)
    assert asked.status_code == 200 and asked.headers["access-control-allow-origin"] == "https://page.example"
    # errors can be read by the page too
    refused = server.http.post("/v1/completions", json=ASKED, headers=page)
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "https://page.example"
    other = server.http.options("/v1/completions", headers={**asks, "Origin": "https://other.example"})
    assert other.status_code == 400


def test_a_key_may_have_any_letters(start: Start) -> None:
    server = start(api_keys=("schlüssel", "other"))
    for key, status in (("schlüssel", 200), ("other", 200), ("schlussel", 401), ("", 401)):
        assert server.http.get("/v1/models", headers={"x-api-key": key.encode()}).status_code == status

"""Listening: the port answers before there is a model, over TLS too, and a signal lets what runs finish within its time."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from tests.server.conftest import slowed, until
from understudy import LLM
from understudy.api import forms
from understudy.errors import UsageError
from understudy.server import listen
from understudy.server.listen import Listener, Stopping
from understudy.server.models import ServedModels
from understudy.server.settings import Settings

SETTINGS = Settings(model_name="tiny", keep_alive=0.05)
ASKED = {"prompt": "x", "max_tokens": 2}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def served(listener: Listener, llm: LLM, client: Callable[[], Any]) -> Any:
    """What `client` gives, which runs beside the server and ends it with a signal."""
    with ThreadPoolExecutor(1) as pool:
        found: Future[Any] = pool.submit(client)
        found.add_done_callback(lambda future: os.kill(os.getpid(), signal.SIGTERM) if future.exception() else None)
        assert listener.serve(ServedModels.of(llm, SETTINGS)) == signal.SIGTERM
        return found.result(30)


def answers(http: httpx.Client) -> bool:
    return http.get("/health").status_code == 200


def test_the_port_answers_while_the_model_is_loaded(llm: LLM) -> None:
    port = free_port()
    with (
        Listener(SETTINGS, "127.0.0.1", port, drain=30) as listener,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http,
    ):
        health = http.get("/health")
        assert health.status_code == 503 and health.json()["status"] == "loading" and int(health.headers["retry-after"]) > 0
        listener.gate.loading.report("reading", 1.0, 4.0)
        listener.gate.loading.report("a note", 0.0, 0.0)
        assert http.get("/health").json() == {"status": "loading", "stage": "reading", "progress": 0.25}
        refused = http.post("/v1/completions", json=ASKED)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "loading" and "25%" in refused.text
        assert http.get("/version").json()["version"]
        # guards stand before this too
        assert http.get("/health", headers={"Host": "evil.example"}).status_code == 403

        def client() -> int:
            until(lambda: answers(http))
            done = http.post("/v1/completions", json=ASKED).json()["usage"]["completion_tokens"]
            os.kill(os.getpid(), signal.SIGTERM)
            return int(done)

        assert served(listener, llm, client) == 2
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/health")


def test_a_connection_outlasts_the_pools_of_clients() -> None:
    with (
        Listener(SETTINGS, "127.0.0.1", port := free_port(), drain=1),
        closing(HTTPConnection("127.0.0.1", port, timeout=20)) as client,
    ):
        for pause in (0.0, 6.0):
            time.sleep(pause)
            client.request("GET", "/version")
            assert client.getresponse().read().startswith(b'{"version"')


def test_certificates_are_passed_on(llm: LLM, tmp_path: Path) -> None:
    authority, clients = trustme.CA(), trustme.CA()
    own, mine = authority.issue_cert("localhost"), clients.issue_cert("me@example.org")
    files = {name: str(tmp_path / name) for name in ("chain.pem", "key.pem", "clients.pem", "authority.pem", "mine.pem")}
    own.cert_chain_pems[0].write_to_path(files["chain.pem"])
    own.private_key_pem.write_to_path(files["key.pem"])
    clients.cert_pem.write_to_path(files["clients.pem"])
    authority.cert_pem.write_to_path(files["authority.pem"])
    mine.private_key_and_cert_chain_pem.write_to_path(files["mine.pem"])
    port = free_port()
    told = {"ssl_certfile": files["chain.pem"], "ssl_keyfile": files["key.pem"]}
    asks = {"ssl_ca_certs": files["clients.pem"], "ssl_cert_reqs": ssl.CERT_REQUIRED}
    trusting = ssl.create_default_context(cafile=files["authority.pem"])
    url = f"https://localhost:{port}/health"
    with Listener(SETTINGS, "localhost", port, drain=1, **told):
        assert httpx.get(url, verify=trusting).status_code == 503
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(url)
        with pytest.raises(httpx.TransportError):
            httpx.get(url.replace("https", "http"))
    with Listener(SETTINGS, "localhost", port, drain=1, **told, **asks):
        with pytest.raises(httpx.TransportError):
            httpx.get(url, verify=trusting)
        trusting.load_cert_chain(files["mine.pem"])
        assert httpx.get(url, verify=trusting).status_code == 503


def test_what_does_not_finish_in_time_is_told_so(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    go = slowed(llm, monkeypatch)
    url = f"http://127.0.0.1:{port}"

    def stream() -> str:
        with httpx.stream("POST", f"{url}/v1/completions", json={**ASKED, "stream": True}, timeout=60) as response:
            return "".join(response.iter_text())

    def client() -> tuple[httpx.Response, str]:
        with httpx.Client(base_url=url) as http:
            until(lambda: answers(http))
        with ThreadPoolExecutor(2) as pool:
            whole = pool.submit(httpx.post, f"{url}/v1/completions", json=ASKED, timeout=60)
            streamed = pool.submit(stream)
            until(lambda: len(llm.scheduler.running) + len(llm.scheduler.waiting) == 2)
            os.kill(os.getpid(), signal.SIGTERM)
            found = whole.result(), streamed.result()
        # clients were told before the pass under way was over
        assert not go.is_set()
        go.set()
        return found

    with Listener(SETTINGS, "127.0.0.1", port, drain=0) as listener:
        whole, streamed = served(listener, llm, client)
    assert "shutting down" in whole.json()["error"]["message"]
    assert "shutting down" in streamed and "[DONE]" not in streamed
    assert llm.scheduler.idle


def test_who_does_not_read_or_send_is_left_behind(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    monkeypatch.setattr(listen, "LAST_WORDS", 0.5)
    # more than the system's buffers of a connection hold
    monkeypatch.setattr(forms, "ALIVE", ": " + "alive " * 300_000 + "\n\n")
    go = slowed(llm, monkeypatch)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    body = json.dumps({**ASKED, "stream": True}).encode()

    def client() -> float:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as http:
            until(lambda: answers(http))
        with closing(socket.create_connection(("127.0.0.1", port))) as silent, closing(socket.socket()) as deaf:
            silent.sendall(head + b"Content-Length: 50\r\n\r\n{")
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            deaf.connect(("127.0.0.1", port))
            deaf.sendall(head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            until(lambda: len(llm.scheduler.running) + len(llm.scheduler.waiting) == 1)
            os.kill(os.getpid(), signal.SIGTERM)
            began = time.monotonic()
            go.set()
            until(lambda: not listener.thread.is_alive())
            return time.monotonic() - began

    with Listener(SETTINGS, "127.0.0.1", port, drain=0) as listener:
        assert 0.5 <= served(listener, llm, client) < 4
    assert "Traceback" not in capfd.readouterr().err
    assert llm.scheduler.idle


def test_a_second_signal_ends_the_process_at_once(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with Listener(SETTINGS, "127.0.0.1", free_port(), drain=30) as listener:
        drained = threading.Event()
        models: Any = type("Fake", (), {"drain": lambda self: drained.set()})()
        stopping = Stopping(models, listener.server)
        stopping(signal.SIGINT, None)
        assert drained.is_set() and listener.server.should_exit and not ended
        stopping(signal.SIGINT, None)
    assert ended == [128 + signal.SIGINT] and stopping.signal == signal.SIGINT


def test_an_address_that_is_taken_is_told_in_one_line() -> None:
    with Listener(SETTINGS, "127.0.0.1", port := free_port(), drain=1):
        for host in ("127.0.0.1", "192.0.2.1", "nowhere.invalid"):
            with pytest.raises(UsageError, match=f"Cannot listen at {host} port {port}: [^\n]+$"):
                Listener(SETTINGS, host, port, drain=1)

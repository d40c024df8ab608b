"""Replicas on one machine: the texts of a single model, through the loss of a replica under load."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from tests.cluster.conftest import OPTIONS, PATIENCE, until
from tests.frontends.test_serve import free_port
from understudy import LLM, SamplingParams

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore::DeprecationWarning")]
TOKENS = 64


def streamed(url: str, prompt: str) -> tuple[str, bool]:
    """The text of a streamed completion, and whether it came to its end. Raises httpx.HTTPError."""
    body = {"prompt": prompt, "max_tokens": TOKENS, "stream": True, "ignore_eos": True}
    text, ended = "", False
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=PATIENCE) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line == "data: [DONE]":
                ended = True
            elif line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                text += event["choices"][0]["text"]
    return text, ended


def test_a_replica_whose_passes_cannot_run_is_not_well() -> None:
    from understudy.cluster.replicas import Replica

    models = SimpleNamespace(fault="")
    replica = SimpleNamespace(application=SimpleNamespace(state=SimpleNamespace(models=models)))
    Replica.check_health(replica)
    models.fault = "the device is gone"
    with pytest.raises(RuntimeError, match="the device is gone"):
        Replica.check_health(replica)


def test_more_replicas_are_asked_for_where_more_wait_than_run() -> None:
    from understudy.cluster.replicas import ReplicaGroup, _count

    assert _count(ReplicaGroup(2, 2, 8, 30)) == {"num_replicas": 2}
    bounds = {"min_replicas": 2, "max_replicas": 5, "target_ongoing_requests": 8}
    assert _count(ReplicaGroup(2, 5, 8, 30)) == {"autoscaling_config": bounds}


def test_a_replica_that_is_killed_under_load_costs_no_wrong_text(demo: LLM, begin: Callable[..., Any]) -> None:
    params = SamplingParams(max_new_tokens=TOKENS, ignore_eos=True)
    prompts = [f"def f{n}(" for n in range(12)]
    texts = dict(zip(prompts, [done.text for done in demo.generate(prompts, params)], strict=True))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = begin("serve", "--replicas", "2", *OPTIONS, "--port", str(port), "--replica-cpus", "1", "--session-affinity")
    until(lambda: command.alive() or "Serving demo" in command.said.read_text(), "it serves")
    first, second = command.replicas()
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    # Whichever is asked tells the figures of both.
    figures = httpx.get(f"{url}/metrics").text
    names = set(re.findall(r'understudy:passes_total{.*replica="(\w+)"', figures))
    assert len(names) == 2, figures
    # The page is there, and what it shows of the engine is of one of them, which it names.
    page = httpx.get(f"{url}/")
    assert page.status_code == 200 and "trusted-types" in page.headers["content-security-policy"]
    assert httpx.get(f"{url}/page/main.js").status_code == 200
    assert httpx.get(f"{url}/understudy").json()["replica"] in names

    def ask(prompt: str) -> bool:
        """Whether the text came whole. What came of another is its beginning, and it is not told as whole."""
        with suppress(httpx.HTTPError):
            text, ended = streamed(url, prompt)
            assert text == texts[prompt] if ended else texts[prompt].startswith(text)
            return ended
        return False

    with ThreadPoolExecutor(len(prompts)) as pool:
        going = [pool.submit(ask, prompt) for prompt in prompts]
        until(lambda: any(future.done() for future in going), "an answer")
        first.kill()
        whole = [future.result(PATIENCE) for future in going]
    assert any(whole)
    # Those that failed are asked again, as clients do: the other replica answers.
    for prompt, done in zip(prompts, whole, strict=True):
        assert done or until(partial(ask, prompt), "a second try")
    # Another one takes the place of the lost one.
    found = until(lambda: len(now := command.replicas()) == 2 and now, "two replicas")
    assert second.pid in {process.pid for process in found} and first.pid not in {process.pid for process in found}
    command.process.send_signal(signal.SIGTERM)
    assert command.wait() == 0 and "Traceback" not in command.said.read_text()

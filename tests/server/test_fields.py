"""Fields that change how tokens are chosen, and log-probabilities in every form that clients read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.server.conftest import Running
from tests.server.test_server import CHAT, PROMPT, events
from understudy import LLM, SamplingParams

FIELDS: dict[str, Any] = {
    "presence_penalty": 2.0,
    "frequency_penalty": 2.0,
    "repetition_penalty": 1.4,
    "logit_bias": {"3": -100, "12": 2.5},
    "min_tokens": 20,
}


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_each_field_gives_the_text_of_the_model_alone(server: Running, plain: LLM, temperature: float) -> None:
    asked = {"prompt": PROMPT, "max_tokens": 30, "temperature": temperature, "seed": 5}
    without = server.post("/v1/completions", **asked).json()["choices"][0]["text"]
    for name, value in FIELDS.items():
        own = {int(token): bias for token, bias in value.items()} if name == "logit_bias" else value
        params = SamplingParams(max_new_tokens=30, temperature=temperature, seed=5, **{name: own})
        expected = plain.generate(PROMPT, params)[0].text
        found = server.post("/v1/completions", **asked, **{name: value}).json()["choices"][0]["text"]
        assert found == expected
        assert name == "min_tokens" or temperature == 0 or found != without, "greedy, this model says one token only"
    both = server.post("/v1/completions", **asked, n=2, presence_penalty=1.5, ignore_eos=True).json()
    assert len(both["choices"]) == 2 and both["usage"]["completion_tokens"] == 60


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": "much"}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"logit_bias": {"70000": 1}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"min_tokens": 1, "stop_token_ids": list(range(256))}, "min_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_values_without_sense_are_refused_by_name(server: Running, body: dict[str, Any], field: str) -> None:
    for path, own in (("/v1/completions", {"prompt": "x"}), ("/v1/chat/completions", {"messages": CHAT})):
        response = server.post(path, **own, **body)
        error = response.json()["error"]
        assert response.status_code == 400 and error["param"].split(".")[0] == field and field in error["message"], error


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/completions", {"prompt": "x", "logprobs": 6}, "logprobs"),
        ("/v1/completions", {"prompt": "x", "logprobs": -1}, "logprobs"),
        ("/v1/completions", {"prompt": "x", "logprobs": True}, "logprobs"),
        ("/v1/chat/completions", {"messages": CHAT, "logprobs": 3}, "logprobs"),
        ("/v1/chat/completions", {"messages": CHAT, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ("/v1/chat/completions", {"messages": CHAT, "top_logprobs": 2}, "top_logprobs"),
    ],
    ids=str,
)
def test_logprobs_out_of_range_are_refused_by_name(server: Running, path: str, body: dict[str, Any], field: str) -> None:
    error = server.post(path, **body)
    assert error.status_code == 400 and error.json()["error"]["param"].split(".")[0] == field


def test_a_chats_logprobs_are_read_by_the_openai_client(server: Running, plain: LLM) -> None:
    alone = plain.chat(CHAT, SamplingParams(max_new_tokens=20, logprobs=2, ignore_eos=True))
    assert alone.logprobs is not None
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    asked: dict[str, Any] = {"model": "tiny", "messages": CHAT, "max_tokens": 20, "logprobs": True, "top_logprobs": 2}
    asked["extra_body"] = {"ignore_eos": True}
    choice = client.chat.completions.create(**asked).choices[0]
    assert choice.logprobs is not None and choice.logprobs.content is not None
    content = choice.logprobs.content
    assert [entry.logprob for entry in content] == [found.logprob for found in alone.logprobs], "drafted or not, bit by bit"
    assert [[top.logprob for top in entry.top_logprobs] for entry in content] == [
        [value for _, value in found.top] for found in alone.logprobs
    ]
    data = b"".join(bytes(entry.bytes or []) for entry in content)
    assert data.decode(errors="replace") == choice.message.content
    streamed: list[Any] = []
    for chunk in client.chat.completions.create(**asked, stream=True):
        found = chunk.choices[0].logprobs
        streamed += (found.content or []) if found else []
    assert streamed == content
    plainly = server.post("/v1/chat/completions", messages=CHAT, max_tokens=3, logprobs=True).json()["choices"][0]
    assert all(entry["top_logprobs"] == [] for entry in plainly["logprobs"]["content"])


@pytest.mark.parametrize("streams", [False, True])
def test_an_echo_has_the_logprobs_of_its_prompt(server: Running, plain: LLM, streams: bool) -> None:
    ids = plain.prompt_ids(PROMPT)
    (alone,) = plain.generate(PROMPT, SamplingParams(max_new_tokens=8, logprobs=2, prompt_logprobs=2))
    assert alone.logprobs is not None and alone.prompt_logprobs is not None
    body = {"prompt": PROMPT, "max_tokens": 8, "logprobs": 2, "echo": True, "stream": streams}
    if streams:
        with server.http.stream("POST", "/v1/completions", json=body) as response:
            choices = [chunk["choices"][0] for chunk in events(response)]
    else:
        choices = server.post("/v1/completions", **body).json()["choices"]
    text = "".join(choice["text"] for choice in choices)
    told: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for choice in choices:
        for name, values in (choice["logprobs"] or {}).items():
            told[name] += values
    assert text == PROMPT + alone.text
    expected = [*alone.prompt_logprobs, *alone.logprobs]
    assert told["token_logprobs"] == [None, *(found.logprob for found in expected)]
    assert told["tokens"][: len(ids)] == list(PROMPT) and len(told["tokens"]) == len(ids) + 8
    assert told["text_offset"][: len(ids) + 1] == list(range(len(ids) + 1))
    for top, found in zip(told["top_logprobs"][1:], expected, strict=True):
        assert max(top.values()) == found.top[0][1] and found.logprob in top.values()


class Harness:
    """What lm-evaluation-harness 0.4 sends to /v1/completions and how it reads the answer (`local-completions`)."""

    @staticmethod
    def body(inputs: list[list[int]], most: int) -> dict[str, Any]:
        return {
            "model": "tiny", "prompt": inputs, "temperature": 0, "max_tokens": most, "logprobs": 1, "seed": 1234, "echo": True,
        }  # fmt: skip

    @staticmethod
    def read(answer: dict[str, Any], context_lengths: list[int], most: int) -> list[tuple[float, bool]]:
        found = []
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        for choice, length in zip(choices, context_lengths, strict=True):
            part = slice(length, -1 if most else None)
            values = choice["logprobs"]["token_logprobs"][part]
            tops = choice["logprobs"]["top_logprobs"][part]
            greedy = all(value == max(top.values()) for value, top in zip(values, tops, strict=True))
            found.append((sum(values), greedy))
        return found


@pytest.fixture(scope="module")
def exact(checkpoint: Path) -> Any:
    """The same weights in float32, in transformers."""
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)


def test_an_evaluation_harness_gets_the_log_likelihoods_of_transformers(start_exact: Running, exact: Any) -> None:
    contexts = [[5, 9, 77, 5], [200], [(3 * i) % 250 + 1 for i in range(70)]]
    best = []
    for context in contexts:
        made = exact.generate(torch.tensor([context]), max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)
        best.append(made[0, len(context) :].tolist())
    pairs = [(context, ending) for context, own in zip(contexts, best, strict=True) for ending in (own, [17, 3, 99, 4])]
    expected = []
    for context, ending in pairs:
        with torch.inference_mode():
            scores = torch.log_softmax(exact(torch.tensor([[*context, *ending]])).logits[0].float(), -1)
        rows = scores[len(context) - 1 : -1]
        expected.append((float(rows.gather(1, torch.tensor(ending)[:, None]).sum()), rows.argmax(1).tolist() == ending))
    assert [greedy for _, greedy in expected] == [True, False] * 3
    inputs = [[*context, *ending] for context, ending in pairs]
    for most in (1, 0):
        body = Harness.body(inputs, most)
        answer = start_exact.http.post("/v1/completions", content=json.dumps(body), headers={"content-type": "application/json"})
        assert answer.status_code == 200, answer.text
        found = Harness.read(answer.json(), [len(context) for context, _ in pairs], most)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
        assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=2e-3)
        assert answer.json()["usage"]["completion_tokens"] == most * len(pairs)

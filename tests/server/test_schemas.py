"""Structured output as clients ask for it: valid, the text of the model alone, and a bad schema is a 400 that stops nobody."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pydantic
import pytest

from tests.server.conftest import Running
from tests.server.test_server import CHAT, PROMPT, events
from understudy import LLM, Constraint, SamplingParams


class Person(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    name: str = pydantic.Field(max_length=12)
    age: int = pydantic.Field(ge=0, le=150)


SCHEMA = Person.model_json_schema()
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}


@pytest.mark.parametrize("temperature", [0.0, 1.2])
@pytest.mark.parametrize("streams", [False, True])
def test_a_schema_gives_the_text_of_the_model_alone(server: Running, plain: LLM, temperature: float, streams: bool) -> None:
    params = SamplingParams(max_new_tokens=240, temperature=temperature, seed=3, constraint=Constraint.json_schema(SCHEMA))
    alone = plain.chat(CHAT, params)
    body = {"messages": CHAT, "max_tokens": 240, "temperature": temperature, "seed": 3}
    body |= {"response_format": FORMAT, "stream": streams}
    if streams:
        with server.http.stream("POST", "/v1/chat/completions", json=body) as response:
            chunks = [chunk["choices"][0] for chunk in events(response)]
        text, reason = "".join(chunk["delta"].get("content", "") for chunk in chunks), chunks[-1]["finish_reason"]
    else:
        answer = server.post("/v1/chat/completions", **body).json()
        choice = answer["choices"][0]
        text, reason = choice["message"]["content"], choice["finish_reason"]
        assert answer["understudy"]["accepted"] > 0
    assert (text, reason) == (alone.text, alone.finish_reason) and reason == "stop"
    Person.model_validate_json(text)


def test_the_openai_client_parses_a_model(server: Running) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    messages: Any = CHAT
    parsed = client.chat.completions.parse(model="tiny", messages=messages, response_format=Person, max_tokens=240)
    assert isinstance(parsed.choices[0].message.parsed, Person)


def test_many_clients_with_and_without_a_form_do_not_meet(server: Running, plain: LLM) -> None:
    forms: list[dict[str, Any]] = [
        {}, {"guided_choice": ["yes", "no"]}, {"structured_outputs": {"regex": "[a-z]{3}[0-9]{2}"}}, {"response_format": FORMAT},
        {"grammar": 'root ::= "(" [a-z]+ ")"'}, {"response_format": {"type": "json_object"}},
    ]  # fmt: skip
    bodies = [{"prompt": PROMPT, "max_tokens": 24, "temperature": 0.9, "seed": i, **form} for i, form in enumerate(forms * 2)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda body: server.post("/v1/completions", **body).json()["choices"][0]["text"], bodies))
    for body, text in zip(bodies, found, strict=True):
        alone = [server.post("/v1/completions", **body).json()["choices"][0]["text"]]
        assert alone == [text]
    assert {found[1], found[7]} <= {"yes", "no"} and found[2][3:].isdigit() and len(found[2]) == 5
    several = server.post("/v1/completions", prompt=PROMPT, n=3, seed=1, temperature=1.5, guided_regex="[a-z]{6}").json()
    texts = [choice["text"] for choice in several["choices"]]
    assert len(set(texts)) > 1 and all(text.isalpha() and len(text) == 6 for text in texts)


BAD = [
    ("response_format", {"type": "json_schema", "json_schema": {"schema": {"type": "string", "minLength": 3, "maxLength": 1}}}),
    ("response_format", {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}),
    ("structured_outputs", {"json": {"type": "array", "uniqueItems": True}}),
    ("structured_outputs", {"regex": "("}),
    ("guided_json", {"properties": {"a": {"pattern": "(?=a)", "type": "string"}}, "type": "object"}),
    ("guided_json", {"enum": ["x" * 300_000]}),
    ("guided_json", '{"items":' * 200 + "true" + "}" * 200),
    ("guided_grammar", "start: nope"),
    ("grammar", "root ::= nope"),
]


@pytest.mark.parametrize(("field", "value"), BAD, ids=lambda value: str(value)[:60])
def test_a_bad_form_is_a_400_with_the_name_of_the_field(server: Running, field: str, value: Any) -> None:
    for path, own in (("/v1/completions", {"prompt": "x"}), ("/v1/chat/completions", {"messages": CHAT})):
        response = server.post(path, **own, max_tokens=2, **{field: value})
        error = response.json()["error"]
        assert response.status_code == 400 and error["param"] == field, error
        assert error["message"].startswith(field) and "\n" not in error["message"]
    assert server.post("/v1/completions", prompt="x", max_tokens=1).status_code == 200


def test_a_form_is_kept_by_the_responses_api_too(server: Running) -> None:
    form = {"type": "json_schema", "name": "person", "schema": SCHEMA}
    found = server.post("/v1/responses", input=PROMPT, max_output_tokens=240, text={"format": form}).json()
    Person.model_validate_json(found["output"][-1]["content"][0]["text"])
    bad = server.post("/v1/responses", input=PROMPT, text={"format": {**form, "schema": {"type": "strin"}}})
    assert bad.status_code == 400 and bad.json()["error"]["param"] == "text.format", bad.text

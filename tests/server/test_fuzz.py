"""Whatever the OpenAPI document allows, and what it does not: no answer is an error of the server."""

from __future__ import annotations

import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode, openapi
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.server.conftest import Running

EXAMPLES = {GenerationMode.POSITIVE: 25, GenerationMode.NEGATIVE: 15}
CHECKS = [content_type_conformance, status_code_conformance, response_schema_conformance]


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_no_body_is_answered_with_an_error_of_the_server(server: Running, mode: GenerationMode) -> None:
    schema = openapi.from_dict(server.http.get("/openapi.json").json())
    session = requests.Session()
    statuses: set[int] = set()
    tried: set[str] = set()

    def ask(case: Case) -> None:
        if isinstance(case.body, dict):
            # A model that writes for minutes shows nothing more.
            few = dict.fromkeys(("max_tokens", "max_completion_tokens", "max_output_tokens"), 3)
            case.body = {**case.body, **few} if mode.is_positive else case.body
        response = case.call(base_url=server.url, session=session)
        statuses.add(response.status_code)
        tried.add(case.operation.label)
        assert response.status_code < 500, f"{case.as_curl_command()}: {response.text}"
        if response.status_code >= 400:
            error = response.json()["error"]
            assert {"message", "type", "param", "code"} == set(error) and "\n" not in error["message"]
        case.validate_response(response, checks=CHECKS)

    for result in schema.get_all_operations():
        operation = result.ok()
        most = EXAMPLES[mode] if operation.method.upper() == "POST" else 2
        with_body = operation.method.upper() == "POST"
        if mode is GenerationMode.NEGATIVE and not with_body:
            continue
        fuzz = given(case=operation.as_strategy(generation_mode=mode))(ask)
        settings(
            max_examples=most,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )(fuzz)()
    assert {"POST /v1/chat/completions", "POST /v1/responses", "POST /v1/messages"} <= tried and "POST /tokenize" in tried
    assert (200 in statuses) if mode.is_positive else (400 in statuses)
    assert server.http.get("/health").status_code == 200

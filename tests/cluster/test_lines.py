"""A batch job on replicas: one record for each line, the texts of a single model, through the loss of a replica."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cluster.conftest import OPTIONS, until
from understudy import LLM, SamplingParams
from understudy.api.settings import AnswerSettings
from understudy.jobs.ledger import Index, Output

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore::DeprecationWarning")]
LINES, TOKENS = 24, 24


def test_a_line_that_is_answered_twice_has_one_record(demo: LLM, tmp_path: Path) -> None:
    """As where a replica is lost after it answered: Ray asks another one. The replica's own code runs here."""
    from understudy.cluster.lines import ClusterJob, LineReplica

    body = {"prompt": "def f(", "max_tokens": 3, "user": "me"}
    asked = json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body})
    (tmp_path / "in.jsonl").write_text(f"{asked}\nnonsense\n")
    replica = LineReplica(None, {"rows": 2, "context": 64}, AnswerSettings("demo"))
    with (tmp_path / "in.jsonl").open("rb") as file:
        output = Output(tmp_path / "out.jsonl", Index.of(file, lambda done, total: None), "demo", overwrite=False)
        told: list[int] = []
        job = ClusterJob(replica.settings, file, output, 4, lambda: told.append(1))
        (group,) = job._groups(2)
        for _ in range(2):
            columns = {name: np.array(column, dtype=object) for name, column in group.to_pydict().items()}
            answered = replica(columns)
            for n in range(2):
                job._keep({name: column[n] for name, column in answered.items()})
        assert list(job._groups(2)) == []
        output.close()
    replica.service.close()
    replica.llm.close()
    assert len(told) == 2 and job.tokens == 3 and job.ignored == {"user"}
    first, second = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert first["response"]["status_code"] == 200 and second["error"]["code"] == "invalid_json"


def test_a_job_is_whole_after_a_replica_was_killed(demo: LLM, begin: Callable[..., Any], tmp_path: Path) -> None:
    bodies = [{"prompt": f"def f{n}(", "max_tokens": TOKENS, "temperature": n % 2, "seed": n} for n in range(LINES)]
    records = [{"custom_id": f"r{n}", "method": "POST", "url": "/v1/completions", "body": body} for n, body in enumerate(bodies)]
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records) + "nonsense\n")
    output = tmp_path / "out.jsonl"
    words = ("batch", "demo", "in.jsonl", "-o", str(output), "--ray", "--replicas", "2", "--replica-cpus", "1", "--window", "4")
    command = begin(*words, *OPTIONS)
    until(lambda: command.alive() or (output.exists() and output.read_text().count("\n") > 2), "the first records")
    before = output.read_text().count("\n")
    command.replicas()[0].kill()
    # One line is nonsense, so not all are answered.
    assert command.wait() == 1, command.said.read_text()
    found = {record["custom_id"]: record for record in map(json.loads, output.read_text().splitlines())}
    assert before < LINES and output.read_text().count("\n") == len(found) == LINES + 1
    assert found[None]["error"]["code"] == "invalid_json"
    for n, body in enumerate(bodies):
        params = SamplingParams(max_new_tokens=TOKENS, temperature=body["temperature"], seed=n)
        text = demo.generate(body["prompt"], params)[0].text
        assert found[f"r{n}"]["response"]["body"]["choices"][0]["text"] == text

"""Equal prompts of one request are read once, and a restarted server reads no long prompt again; clients and figures are told."""

from pathlib import Path
from typing import Any

import pytest
from httpx import Response

from tests.server.conftest import Running, Start
from understudy import LLM
from understudy.prefixes.disk import DiskPrefixes


def prompt(seed: int) -> list[int]:
    return [(seed * i + i * i // 7) % 200 + 1 for i in range(300)]


def figures(server: Running) -> dict[str, float]:
    lines = server.http.get("/metrics").text.splitlines()
    return {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("understudy:")}


def cached(response: Response) -> int:
    usage: Any = response.json()["usage"]
    assert usage["prompt_tokens"] == 300
    return int(usage["prompt_tokens_details"]["cached_tokens"])


def test_the_choices_of_one_request_read_its_prompt_once(server: Running) -> None:
    body: dict[str, Any] = {"prompt": prompt(3), "max_tokens": 8, "temperature": 0.8, "seed": 4, "ignore_eos": True}
    several = server.post("/v1/completions", n=3, **body)
    assert cached(several) == 0
    found = figures(server)
    assert found["understudy:prefix_cache_queries_total"] == 900
    # What came while the first was being read joins it for the end of the prompt.
    assert 2 * 128 < found["understudy:prefix_cache_hits_total"] <= 2 * 299
    again = server.post("/v1/completions", **body)
    assert cached(again) == 299 and again.json()["choices"][0]["text"] == several.json()["choices"][0]["text"]


def test_a_restarted_server_reads_no_long_prompt_again(
    start: Start, llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, counts, hits = [], [], []
    for _ in range(2):
        for row in range(3):
            llm.engine.forget(row)
        prefixes = DiskPrefixes.open(tmp_path, 1 << 28, "34" * 32, llm.model.cache)
        monkeypatch.setattr(llm, "prefixes", prefixes)
        monkeypatch.setattr(llm.engine, "prefixes", prefixes)
        server = start()
        response = server.post("/v1/completions", prompt=prompt(5), max_tokens=12, ignore_eos=True)
        prefixes.writer.flush()
        texts.append(response.json()["choices"][0]["text"])
        counts.append(cached(response))
        hits.append(figures(server))
        prefixes.close()
    assert texts[0] == texts[1] and counts == [0, 256]
    assert hits[0]["understudy:prefix_bytes_written_total"] > 0 and hits[0]["understudy:external_prefix_cache_hits_total"] == 0
    assert hits[1]["understudy:external_prefix_cache_hits_total"] == 256 and hits[1]["understudy:prefix_files_damaged_total"] == 0

"""lm-evaluation-harness itself, as an outside client: a small task of one's own gets the log-likelihoods of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.server.conftest import Running

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install '.[eval]'")

TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs:
  data_files: {data}
output_type: multiple_choice
test_split: train
doc_to_text: question
doc_to_target: label
doc_to_choice: choices
metric_list:
  - metric: acc
"""
QUESTIONS = [
    {"question": "The sky is", "choices": ["blue", "a tree", "seven"], "label": 0},
    {"question": "Two and two", "choices": ["make four", "make a house"], "label": 1},
    {"question": "x" * 60, "choices": ["y", "x"], "label": 1},
]


def test_a_small_task_gets_the_log_likelihoods_of_transformers(
    start_exact: Running, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    data = tmp_path / "questions.json"
    data.write_text("\n".join(json.dumps(question) for question in QUESTIONS))
    (tmp_path / "tiny_choice.yaml").write_text(TASK.format(data=data))
    server = f"base_url={start_exact.url}/v1/completions,tokenizer={checkpoint},num_concurrent=1,max_retries=1"
    found: Any = simple_evaluate(
        model="local-completions",
        model_args=f"model=tiny,{server},tokenizer_backend=huggingface",
        tasks=["tiny_choice"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        batch_size=4,
        bootstrap_iters=0,
    )
    samples = found["samples"]["tiny_choice"]
    assert len(samples) == len(QUESTIONS) and 0 <= found["results"]["tiny_choice"]["acc,none"] <= 1
    exact = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    for sample in samples:
        for arguments, responses in zip(sample["arguments"], sample["resps"], strict=True):
            context, ending = arguments
            value, greedy = responses[0]
            expected = likelihood(exact, checkpoint, context, ending)
            assert value == pytest.approx(expected[0], abs=2e-3) and greedy == expected[1]


def likelihood(model: Any, checkpoint: Path, context: str, ending: str) -> tuple[float, bool]:
    """How likely `ending` is after `context`, and whether greedy decoding writes it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    ids = tokenizer(context + ending, add_special_tokens=False)["input_ids"]
    first = len(tokenizer(context, add_special_tokens=False)["input_ids"])
    with torch.inference_mode():
        scores = torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), -1)[first - 1 : -1]
    own = torch.tensor(ids[first:])
    return float(scores.gather(1, own[:, None]).sum()), bool((scores.argmax(1) == own).all())

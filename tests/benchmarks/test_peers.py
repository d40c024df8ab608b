"""The peers give the tokens of `generate`, in memory and with every layer on disk, and report where they ran."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import peers
from understudy.demo.text import train_tokenizer


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a tokenizer of bytes."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.2,
        eos_token_id=None,
    )
    folder = tmp_path_factory.mktemp("small")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer: PreTrainedTokenizerFast = train_tokenizer([""])
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("mode", ["transformers", "accelerate"])
def test_tokens_are_those_of_generate(small: Path, tmp_path: Path, mode: str) -> None:
    options = ["--new-tokens", "9", "--prompts", "2", "--dtype", "float32", "--threads", "1", "--warm"]
    written = tmp_path / "out.json"
    command = [sys.executable, peers.__file__, mode, str(small), *options, "--json", str(written)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures == json.loads(written.read_text())
    assert figures["mode"] == mode
    assert figures["tokens_per_second"] > 0
    model = AutoModelForCausalLM.from_pretrained(small, dtype=torch.float32).eval()
    for result in figures["results"]:
        prompt = result["prompt_ids"]
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=9, min_new_tokens=9, do_sample=False)
        assert result["token_ids"] == expected[0, len(prompt) :].tolist()

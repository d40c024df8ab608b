"""Commands run in a process of their own: on the fake LLM (`understudy`) or for real (`command`)."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAKE = [sys.executable, str(Path(__file__).with_name("fake.py"))]
REAL = [sys.executable, "-m", "understudy"]

Run = Callable[..., subprocess.CompletedProcess[str]]


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    """The caller's, with this source tree, an empty cache of its own, and one thread."""
    own = {"PYTHONPATH": str(ROOT / "src"), "UNDERSTUDY_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    return {**os.environ, "HF_HUB_OFFLINE": "1", **own, **more}


def runner(program: list[str], tmp_path: Path) -> Run:
    def run(*words: str, stdin: str | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        given = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
        return subprocess.run(
            [*program, *words],
            capture_output=True,
            text=True,
            env=environment(tmp_path, **more),
            cwd=tmp_path,
            timeout=120,
            check=False,
            **given,
        )

    return run


def tiny_checkpoint(directory: Path) -> Path:
    """A random Llama with a byte-level tokenizer: real enough to prepare, plan and run."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(["<end>", *letters])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(directory)
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "head_dim": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 1}
    config = LlamaConfig(vocab_size=len(letters) + 1, tie_word_embeddings=True, eos_token_id=0, **sizes, **heads)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def understudy(tmp_path: Path) -> Run:
    return runner(FAKE, tmp_path)


@pytest.fixture
def command(tmp_path: Path) -> Run:
    return runner(REAL, tmp_path)

"""Makes machine code of all kernels ahead, so that nobody who installs the wheel waits for a compiler.

    python tools/ready_kernels.py                # for every set of instructions that this processor has
    python tools/ready_kernels.py --sets avx2    # for these alone

It runs small random models under each set (UNDERSTUDY_ISA), twice: once to compile, once to see which machine code a run takes
from disk. That goes to src/understudy/kernels/ready/NAME, which a wheel takes with it and git does not. It serves the numba and
the Python that made it; with others, kernels are compiled at the first run, as without it. What is found out once about the
built-in model goes there too, for the torch and the transformers that it was found with."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parents[1] / "src"
# Options under which a small model runs; together they use every kernel.
RUNS: tuple[dict[str, Any], ...] = (
    {},
    {"bits": 2, "head_bits": 4},
    {"bits": 3, "head_bits": 4, "rows": 2},
    {"bits": 8},
    {"bits": 16},
    {"codec": "raw"},
    {"codec": "raw", "bits": 3},
    {"dtype": "float32"},
    {"dtype": "float32", "codec": "raw"},
    {"resident": "none"},
    {"resident": "none", "codec": "raw"},
    {"link": True, "resident": "none"},
    {"method": "none", "resident": "none"},
)


def main() -> int:
    """Make machine code for all sets that were asked for. The exit status is 1 where one of them failed."""
    sys.path.insert(0, str(SOURCES))
    from understudy.kernels import instructions
    from understudy.kernels.code_cache import READY

    here = [each.name for each in instructions.SETS if each.serves(instructions.found())]
    parser = argparse.ArgumentParser(description="Makes machine code of all kernels ahead.")
    parser.add_argument("--sets", nargs="+", choices=here, default=here, help=f"of {', '.join(here)}; default: all")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        work(READY / given.one, Path(os.environ["READY_MODELS"]), record=bool(os.environ["READY_RECORD"]))
        return 0
    with tempfile.TemporaryDirectory() as place:
        for name in given.sets:
            start = time.monotonic()
            make(name, READY / name, Path(place))
            size = sum(path.stat().st_size for path in (READY / name).iterdir())
            print(f"{name}: {size / (1 << 20):.1f} MiB in {time.monotonic() - start:.0f} s", flush=True)
    know_built_in(READY)
    return 0


def know_built_in(ready: Path) -> None:
    """Write what is found out once about the built-in model to the folder `ready`: the proof that it runs exactly, and what a pass
    of it does. What was there is replaced."""
    from understudy.demo import path
    from understudy.models.proving.proof import prove
    from understudy.models.stock.configuration import config_of
    from understudy.sources import layout_of
    from understudy.weights.checkpoint import Checkpoint

    for folder in ("proofs", "traces"):
        shutil.rmtree(ready / folder, ignore_errors=True)
    prove(config_of(path()), ready)
    layout_of(Checkpoint.open(path()), ready)


def make(name: str, ready: Path, place: Path) -> None:
    """Make the machine code for the set `name` in the folder `ready`; what was there is replaced."""
    shutil.rmtree(ready, ignore_errors=True)
    environment = {
        **os.environ, "UNDERSTUDY_ISA": name, "NUMBA_CACHE_DIR": str(place / "code"), "READY_MODELS": str(place / "models"),
        "PYTHONPATH": str(SOURCES),
    }  # fmt: skip
    # Each prepares its models anew, since preparing has kernels of its own.
    for step, record in (("compiled", ""), ("recorded", "yes")):
        extra = {"UNDERSTUDY_CACHE": str(place / name / step), "READY_RECORD": record}
        subprocess.run([sys.executable, __file__, "--one", name], env={**environment, **extra}, check=True)


def work(ready: Path, models: Path, record: bool) -> None:
    """Run every small model in every way. With `record`, what is taken from disk is written to `ready`."""
    import torch

    from understudy import LLM, SamplingParams

    warnings.simplefilter("ignore", RuntimeWarning)
    torch.manual_seed(0)
    made = small_models(models)
    params = [SamplingParams(max_new_tokens=8, temperature=temperature, seed=1) for temperature in (0.0, 0.8)]
    with recorded(ready) if record else nullcontext():
        for model in made:
            for options in RUNS:
                with LLM(model, **options) as llm:
                    for each in params:
                        llm.generate([[1, 2, 3, 1, 2, 3], list(range(1, 80))], each)


@contextmanager
def recorded(ready: Path) -> Iterator[None]:
    """Write all machine code that is loaded within to `ready`."""
    from understudy.kernels.code_cache import CodeCache

    plain = CodeCache._load_overload
    ready.mkdir(parents=True)

    def load(self: Any, signature: Any, target: Any) -> Any:
        key = self._index_key(signature, target.codegen())
        if (data := self._cache_file.load(key)) is not None:
            self.ready_file(ready.name).save(key, data)
        return plain(self, signature, target)

    CodeCache._load_overload = load  # type: ignore[method-assign]
    try:
        yield
    finally:
        CodeCache._load_overload = plain  # type: ignore[method-assign]


def small_models(place: Path) -> list[Path]:
    """Checkpoints of small random models: one with attention alone, one with recurrent layers too."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    common = {
        "vocab_size": 4096, "hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 32, "max_position_embeddings": 512, "eos_token_id": 0, "bos_token_id": 0, "pad_token_id": None,
    }  # fmt: skip
    kinds = {
        "llama": {"num_hidden_layers": 2},
        "qwen3_5_text": {
            "num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
            "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "tie_word_embeddings": True,
        },
    }  # fmt: skip
    for kind, own in kinds.items():
        if not (place / kind).is_dir():
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **common, **own), dtype=torch.bfloat16)
            model.save_pretrained(place / kind)
            for file in (SOURCES / "understudy/demo/model").glob("tokenizer*"):
                shutil.copy(file, place / kind)
    return [place / kind for kind in kinds]


if __name__ == "__main__":
    sys.exit(main())

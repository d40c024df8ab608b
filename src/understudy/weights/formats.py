"""What people give in the place of a checkpoint of safetensors: adapters and other formats. Each is refused with what to give."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from ..errors import CheckpointError

ADAPTER = "adapter_config.json"
# How a file begins that Git LFS left in the place of a large one.
POINTER = b"version https://git-lfs.github.com/spec/"


def refuse_adapter(path: Path) -> None:
    """Raise CheckpointError where the directory `path` holds an adapter: alone it is no model, and beside one it changes it."""
    if not (path / ADAPTER).is_file():
        return
    base = None
    with suppress(OSError, ValueError):
        content = json.loads((path / ADAPTER).read_text(encoding="utf-8"))
        base = content.get("base_model_name_or_path") if isinstance(content, dict) else None
    of = f"of {base}" if base else "of another model"
    raise CheckpointError(
        f"{path} holds an adapter ({ADAPTER}) {of}: merge both with peft (merge_and_unload, then save_pretrained) and give the"
        " result."
    )


def refuse_pointer(path: Path) -> None:
    """Raise CheckpointError where the file `path` is what git alone gets of a large file: a few lines that name it."""
    try:
        with path.open("rb") as file:
            start = file.read(len(POINTER))
    except OSError:
        # whoever reads it says so
        return
    if start == POINTER:
        advice = f"run `git lfs pull` in {path.parent}, or download the model again"
        raise CheckpointError(f"{path} is only a pointer of Git LFS to the real file: {advice}.")


def other_format(path: Path) -> str | None:
    """What the file or directory `path` holds instead of safetensors with a config.json, and what to give; None: nothing known."""
    files = [path] if path.is_file() else sorted(path.iterdir()) if path.is_dir() else []
    names = [file.name for file in files]
    if gguf := next((name for name in names if name.endswith(".gguf")), None):
        return gguf_advice(gguf)
    if torch_file := next((name for name in names if name.startswith("pytorch_model") and name.endswith(".bin")), None):
        return f"{torch_file} is not in safetensors: load the model with transformers, and save it with save_pretrained"
    if own := next((name for name in names if name.startswith("consolidated") and name.endswith((".safetensors", ".pth"))), None):
        return f"{own} is in its maker's own format: get the files that transformers reads, config.json and model*.safetensors"
    return None


def gguf_advice(name: str) -> str:
    """What to give in the place of a GGUF file or repository of this `name`."""
    return f"{name} is GGUF, which Understudy does not read: give the safetensors checkpoint that it was made from, in bfloat16"

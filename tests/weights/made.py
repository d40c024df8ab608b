"""Small checkpoints for the tests of this folder, written with the safetensors library, and their layouts."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from understudy.weights.checkpoint import Checkpoint
from understudy.weights.layout import LinearSpec, ModelLayout


def tensors(
    dtype: torch.dtype = torch.bfloat16, tied: bool = True, hidden: int = 128, layers: int = 2
) -> dict[str, Tensor]:
    """A model in outline: an embedding, `layers` of two linears (one with a bias) and a norm, a head unless tied."""
    generator = torch.Generator().manual_seed(0)
    made = {"embed.weight": torch.randn(200, hidden, generator=generator)}
    for i in range(layers):
        made[f"layers.{i}.up.weight"] = torch.randn(3 * hidden, hidden, generator=generator) * 0.05
        made[f"layers.{i}.up.bias"] = torch.randn(3 * hidden, generator=generator)
        made[f"layers.{i}.down.weight"] = torch.randn(hidden, 3 * hidden, generator=generator) * 0.05
        made[f"layers.{i}.norm.weight"] = torch.ones(hidden)
    if not tied:
        made["head.weight"] = torch.randn(200, hidden, generator=generator) * 0.1
    made["rotary.inverse"] = torch.arange(8.0)
    return {name: tensor.to(dtype) for name, tensor in made.items()}


def write(path: Path, made: dict[str, Tensor], shards: int = 1) -> Path:
    """A checkpoint directory."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": "outline", "hidden_size": 128}))
    (path / "tokenizer.json").write_text("{}")
    if shards == 1:
        save_file(made, path / "model.safetensors", metadata={"format": "pt"})
        return path
    names = sorted(made)
    files = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: made[name] for name in names if files[name] == file}, path / file)
    index = {"metadata": {}, "weight_map": files}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def layout(checkpoint: Checkpoint) -> ModelLayout:
    """The layout of what `tensors` makes; rotary.inverse is a tensor that the model does not use."""
    names = checkpoint.tensors
    weights = [name for name in names if ".up.weight" in name or ".down.weight" in name]
    weights.sort(key=lambda name: (name.split(".")[1], name.split(".")[2] == "down"))
    weights.append("head.weight" if "head.weight" in names else "embed.weight")
    modules = [*(name.removesuffix(".weight") for name in weights[:-1]), "head"]
    linears = [LinearSpec(module, name, names[name].shape) for module, name in zip(modules, weights, strict=True)]
    shared = sorted(name for name in names if "norm" in name or "bias" in name)
    return ModelLayout(tuple(linears), "embed.weight", tuple(shared))

"""Small checkpoints for the tests of this folder, written with the safetensors library, and their layouts."""

import json
import random
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


def mixture(pieces: bool, dtype: torch.dtype = torch.bfloat16, rows: int = 64, experts: int = 5) -> dict[str, Tensor]:
    """`tensors` with `experts` in each layer: in two tensors, or in three of each expert, of which two have `rows` rows."""
    made = tensors(dtype)
    generator = torch.Generator().manual_seed(1)
    for i in range(2):
        halves = torch.randn(experts, 2, rows, 128, generator=generator).to(dtype) * 0.05
        down = torch.randn(experts, 128, rows, generator=generator).to(dtype) * 0.05
        if not pieces:
            made |= {f"layers.{i}.experts.halves": halves.flatten(1, 2), f"layers.{i}.experts.last": down}
            continue
        for e in range(experts):
            own = {"w1": halves[e, 0], "w3": halves[e, 1], "w2": down[e]}
            made |= {f"layers.{i}.experts.{e}.{name}.weight": tensor.clone() for name, tensor in own.items()}
    return made


def tall(made: dict[str, Tensor], spec: LinearSpec) -> Tensor:
    """The weight of `spec`, [N, K]."""
    return torch.cat([made[name].flatten(0, -2) for name in spec.tensors])


def write(path: Path, made: dict[str, Tensor], shards: int = 1, order: int | None = None) -> Path:
    """A checkpoint directory. `order`: seeds which tensor lies in which shard; None: one after another by name."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": "outline", "hidden_size": 128}))
    (path / "tokenizer.json").write_text("{}")
    if shards == 1:
        save_file(made, path / "model.safetensors", metadata={"format": "pt"})
        return path
    names = sorted(made)
    if order is not None:
        random.Random(order).shuffle(names)
    files = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: made[name] for name in names if files[name] == file}, path / file)
    index = {"metadata": {}, "weight_map": files}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def layout(checkpoint: Checkpoint) -> ModelLayout:
    """The layout of what `tensors` or `mixture` makes; rotary.inverse is a tensor that the model does not use."""
    names = checkpoint.tensors
    weights = [name for name in names if ".up.weight" in name or ".down.weight" in name]
    weights.sort(key=lambda name: (name.split(".")[1], name.split(".")[2] == "down"))
    weights.append("head.weight" if "head.weight" in names else "embed.weight")
    modules = [*(name.removesuffix(".weight") for name in weights[:-1]), "head"]
    linears = [LinearSpec(module, name, names[name].shape) for module, name in zip(modules, weights, strict=True)]
    linears[-1:-1] = [spec for i in range(2) for spec in _experts(checkpoint, i)]
    shared = sorted(name for name in names if "norm" in name or "bias" in name)
    return ModelLayout(tuple(linears), "embed.weight", tuple(shared))


def _experts(checkpoint: Checkpoint, layer: int) -> list[LinearSpec]:
    """The weights of a layer's experts, if it has any."""
    first, last = f"layers.{layer}.experts.halves", f"layers.{layer}.experts.last"
    if first in checkpoint.tensors:
        shapes = {name: checkpoint.info(name).shape for name in (first, last)}
        return [LinearSpec(name, name, (e * rows, columns), experts=e) for name, (e, rows, columns) in shapes.items()]
    count = sum(f"layers.{layer}.experts." in name for name in checkpoint.tensors) // 3
    made = []
    for module, names in ((first, ("w1", "w3")), (last, ("w2",))) if count else ():
        pieces = tuple(f"layers.{layer}.experts.{e}.{name}.weight" for e in range(count) for name in names)
        rows, columns = checkpoint.info(pieces[0]).shape
        made.append(LinearSpec(module, pieces[0], (rows * len(pieces), columns), experts=count, pieces=pieces))
    return made

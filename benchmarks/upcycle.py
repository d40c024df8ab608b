"""Makes a mixture of experts of a dense model, one that writes much the same text: for measuring where no other is at hand.

    python benchmarks/upcycle.py DENSE --output DIR --experts 32 --chosen 4 --noise 0.1

DENSE is a checkpoint directory of the Llama kind. The result is of the Mixtral kind: in the place of each feed-forward network
stand so many copies of it, each with its own noise, and a router of random numbers that sends each token to a few of them. Copies
that are alike give together what the one gave, so the text stays text ("sparse upcycling", arXiv 2212.05055, before any training).
What a router chooses depends on the hidden states alone, but on nothing that was learned: trained routers repeat themselves more.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from understudy.errors import UnderstudyError, UsageError
from understudy.weights.checkpoint import COPIED, Checkpoint

# Matrices of a feed-forward network, by their names in Llama and in Mixtral.
NAMES = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
# How far apart a router's scores are: standard deviations of its logits where hidden states have numbers around one.
SPREAD = 2.0


def configuration(dense: dict[str, object], experts: int, chosen: int) -> dict[str, object]:
    """The config of the mixture. UsageError for a model that is not of the Llama kind."""
    if dense.get("model_type") != "llama" or dense.get("mlp_bias"):
        raise UsageError(f"A model of kind {dense.get('model_type')!r} cannot be made a mixture: only Llama's can.")
    kept = {name: value for name, value in dense.items() if name not in ("mlp_bias", "attention_bias", "pretraining_tp")}
    mixture = {"num_local_experts": experts, "num_experts_per_tok": chosen, "sliding_window": None, "router_jitter_noise": 0.0}
    return {**kept, **mixture, "model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}


def experts_of(name: str, weight: Tensor, experts: int, noise: float, random: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    """The matrices of all experts that are made of one of the dense model, by the names that Mixtral has for them."""
    layer, _, matrix = name.removesuffix(".weight").rpartition(".mlp.")
    size = float(weight.float().std()) * noise
    for expert in range(experts):
        own = torch.randn(weight.shape, generator=random, dtype=torch.float32) * size
        yield f"{layer}.block_sparse_moe.experts.{expert}.{NAMES[matrix]}.weight", (weight.float() + own).to(weight.dtype)


def routers(config: dict[str, object], experts: int, dtype: torch.dtype, random: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    """A router of each layer."""
    hidden, layers = int(str(config["hidden_size"])), int(str(config["num_hidden_layers"]))
    for layer in range(layers):
        weight = torch.randn((experts, hidden), generator=random) * (SPREAD / hidden**0.5)
        yield f"model.layers.{layer}.block_sparse_moe.gate.weight", weight.to(dtype)


def write(source: Path, output: Path, experts: int, chosen: int, noise: float) -> None:
    """Write the mixture to the new directory `output`, a file for each layer and one for all else."""
    dense = Checkpoint.open(source)
    config = configuration(dense.config, experts, chosen)
    output.mkdir(parents=True)
    random = torch.Generator().manual_seed(0)
    places: dict[str, str] = {}

    def save(file: str, tensors: dict[str, Tensor]) -> None:
        save_file(tensors, output / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(tensors, file))

    networks = [name for name in dense.tensors if any(f".mlp.{matrix}." in name for matrix in NAMES)]
    dtype = dense.info(networks[0]).dtype
    rest = {name: dense.read(name) for name in dense.tensors if name not in networks}
    save("model-rest.safetensors", rest | dict(routers(config, experts, dtype, random)))
    for number, layer in enumerate(sorted({name.partition(".mlp.")[0] for name in networks})):
        own = [name for name in networks if name.startswith(f"{layer}.mlp.")]
        made = {key: tensor for name in own for key, tensor in experts_of(name, dense.read(name), experts, noise, random)}
        save(f"model-layer{number:03}.safetensors", made)
        print(f"\r{layer}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    (output / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    for file in {file for pattern in COPIED for file in source.glob(pattern)}:
        if file.name not in ("config.json", "model.safetensors.index.json"):
            (output / file.name).write_bytes(file.read_bytes())
    (output / "config.json").write_text(json.dumps(config, indent=2))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("dense", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--chosen", type=int, default=4)
    parser.add_argument("--noise", type=float, default=0.1, help="of each expert, in standard deviations of the weight")
    asked = parser.parse_args(arguments)
    try:
        write(asked.dense, asked.output, asked.experts, asked.chosen, asked.noise)
    except (UnderstudyError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

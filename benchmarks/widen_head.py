"""Makes of a head for a small model the head for its stand-in: it drafts the same.

    python benchmarks/widen_head.py HEAD --output DIR --widen 20

A stand-in's hidden states are k copies of the small model's, end to end (standin.py). So a head's matrix becomes k x k blocks of
W/k, a norm, a bias and an embedding repeat, and what reads several hidden states or embeddings one after another repeats each of
them. What gives tokens keeps its outputs. In exact arithmetic all features are copies, and all logits are what they were.
"""

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from standin import DTYPES
from understudy.errors import UnderstudyError, UsageError
from understudy.heads import DraftHead, HeadConfig
from understudy.heads.files import built, load, save
from understudy.heads.held import Holding

WIDENED = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")


def configuration(config: HeadConfig, k: int) -> HeadConfig:
    """The config of a head for a stand-in k times as wide. It does not know that model's fingerprint."""
    layer = {name: value * k if name in WIDENED else value for name, value in config.layer.items()}
    target = replace(config.target, hidden_size=config.target.hidden_size * k, fingerprint="")
    return replace(config, target=target, layer=layer)


def joined(config: HeadConfig) -> dict[str, int]:
    """Tensors whose columns are those of several vectors of the hidden size one after another: name -> how many.

    Raises UsageError for a kind of head of which that is not known."""
    match config.kind:
        case "eagle":
            return {"fc.weight": 2}
        case "eagle3":
            first = {f"layers.0.self_attn.{name}_proj.weight": 2 for name in "qkv"}
            return {"fc.weight": len(config.taps), "joined_norm.weight": len(config.taps), **first}
        case "clover2":
            return {"projection.weight": 2}
        case "clover" | "medusa":
            return {}
        case kind:
            raise UsageError(f"A head of kind {kind} cannot be widened.")


def repeated(tensor: Tensor, parts: int, k: int) -> Tensor:
    """`tensor` whose last dimension is `parts` vectors, each of which is k times there instead."""
    split = tensor.unflatten(-1, (parts, 1, -1))
    return split.expand(*split.shape[:-2], k, split.shape[-1]).flatten(-3)


def scale(config: HeadConfig, name: str, k: int) -> float:
    """What else a matrix is multiplied by: Clover scales embeddings to length 1, so that each of k copies is shorter."""
    scaled = config.kind == "clover" and name in ("decoder.key.weight", "decoder.value.weight")
    return math.sqrt(k) if scaled else 1.0


@torch.no_grad()
def widened(head: DraftHead, k: int) -> DraftHead:
    """The head for a stand-in k times as wide as the model of `head`, in the type of `head`."""
    wide = built(configuration(head.config, k), "meta")
    parts, small = joined(head.config), head.state_dict()
    tensors = {}
    for name, shape in ((name, tensor.shape) for name, tensor in wide.state_dict().items()):
        tensor = small[name]
        if tensor.shape == shape:
            tensors[name] = tensor.clone()
            continue
        reads = tensor.dim() == 2 and name != "embedding"
        made = repeated(tensor, parts.get(name, 1), k) * (scale(head.config, name, k) / k if reads else 1.0)
        tensors[name] = made.repeat(shape[0] // made.shape[0], *[1] * (made.dim() - 1)).to(tensor.dtype)
    wide.load_state_dict(tensors, assign=True)
    return wide.requires_grad_(False).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes a head for a stand-in of one for the small model.")
    parser.add_argument("head", type=Path, help="the directory of a head")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--widen", type=int, default=20, help="k, as standin.py had it")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bfloat16")
    given = parser.parse_args()
    if given.widen < 1:
        parser.error("--widen must be at least 1")
    try:
        wide = widened(load(given.head, Holding(torch.float32)), given.widen)
        save(wide.to(DTYPES[given.dtype][0]), given.output)
    except UnderstudyError as error:
        raise SystemExit(f"widen_head: {error}") from None
    size = (given.output / "model.safetensors").stat().st_size
    print(f"{given.output}: head for {given.widen} times the width, {size / 1e6:.1f} MB", file=sys.stderr)


if __name__ == "__main__":
    main()

"""Medusa as its authors publish it, `HEAD.BLOCK.linear.weight` and `HEAD.BLOCKS.weight`, and as vLLM reads it, `blocks` and
`lm_heads`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError
from .. import HeadConfig, TargetFacts
from . import ADVICE, HeadContent, HeadFormat, Tensors, count

# Names of both forms, without what may stand before them.
_BLOCK = re.compile(r"(?:(\d+)\.(\d+)\.linear|blocks\.(\d+)\.layers\.(\d+))\.(weight|bias)")
_OUTPUT = re.compile(r"(?:(\d+)\.\d+|lm_heads\.(\d+))\.weight")
_BEFORE = re.compile(r"^medusa_heads?\.")


class PublishedMedusa(HeadFormat):
    """Heads of Medusa. How many there are, their tensors tell: published configs may say another number."""

    def fits(self, config: Mapping[str, Any], tensors: Tensors) -> bool:
        return any(_BLOCK.fullmatch(_BEFORE.sub("", name)) for name in tensors)

    def translate(self, config: Mapping[str, Any], tensors: Tensors) -> HeadContent:
        found: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            found[_own_name(_BEFORE.sub("", name))] = tensor
        heads = 1 + max(int(name.split(".")[1]) for name in found if name.startswith("heads."))
        blocks = 1 + max(int(name.split(".")[2]) for name in found if name.startswith("heads."))
        size = len(found["heads.0.0.linear.weight"])
        for head in range(heads):
            for block in range(blocks):
                found.setdefault(f"heads.{head}.{block}.linear.bias", torch.zeros(size))
        return _with_outputs(config, found, heads, {"blocks": blocks})


def _own_name(name: str) -> str:
    if match := _BLOCK.fullmatch(name):
        head, block = (number for number in match.groups()[:4] if number is not None)
        return f"heads.{head}.{block}.linear.{match[5]}"
    if match := _OUTPUT.fullmatch(name):
        return f"outputs.{match[1] or match[2]}.weight"
    # vLLM's, where all heads share one.
    return "outputs.0.weight" if name == "lm_head.weight" else name


def _with_outputs(config: Mapping[str, Any], found: dict[str, Tensor], heads: int, options: dict[str, Any]) -> HeadContent:
    """The head with `found`, whose vocabulary its output heads tell, or the config where they are the target's own. One that all
    share is given to each."""
    size = len(found["heads.0.0.linear.weight"])
    pruned = len(found["token_map"]) if "token_map" in found else 0
    outputs = {name: tensor for name, tensor in found.items() if name.startswith("outputs.")}
    if not outputs or (config.get("original_lm_head") and not pruned):
        target = TargetFacts(size, count(config, "vocab_size"))
        found = {name: tensor for name, tensor in found.items() if name not in outputs}
        return HeadContent(HeadConfig("medusa", target, (-1,), heads=heads, options=options), found)
    first = outputs.get("outputs.0.weight")
    if first is None:
        raise CheckpointError(f"The head lacks the output head of its first Medusa head. {ADVICE}")
    if len(outputs) == 1:
        found |= {f"outputs.{head}.weight": first for head in range(heads)}
    if pruned:
        found["token_map"] = found["token_map"].to(torch.int64)
    target = TargetFacts(size, count(config, "vocab_size") if pruned else len(first))
    return HeadContent(HeadConfig("medusa", target, (-1,), pruned, heads=heads, options={**options, "own_outputs": True}), found)

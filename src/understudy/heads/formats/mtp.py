"""Layers for multi-token prediction (MTP) as checkpoints bring them along, found by the names of their tensors.

Two ways of naming are published. Qwen3-Next, Qwen3.5 and EXAONE 4.5 have all of it under `mtp.`: `fc`, `pre_fc_norm_embedding`,
`pre_fc_norm_hidden`, `norm`, and decoder layers. DeepSeek-V3, GLM and their relatives number a layer on after the model's own:
`layers.N.eh_proj`, `enorm`, `hnorm`, `shared_head.norm`, and the decoder layer's tensors beside them. What is computed with them is
the same (heads/mtp.py)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...errors import CheckpointError
from ...models.wrapper import text_config
from ...weights.entries import Contents
from ...weights.store import Store
from .. import DraftHead, HeadConfig, TargetFacts
from ..files import built

# What may stand before the names of a text model's tensors.
_PREFIX = r"(?:model\.|language_model\.)*"
_TOGETHER = re.compile(rf"{_PREFIX}mtp\.(?:layers\.(?P<number>\d+)\.)?(?P<rest>.+)")
_NUMBERED = re.compile(rf"{_PREFIX}layers\.(?P<number>\d+)\.(?P<rest>.+)")
# What is not the decoder layer's, by our names for it.
_OWN = {
    "pre_fc_norm_embedding": "embedding_norm", "pre_fc_norm_hidden": "hidden_norm", "fc": "join", "norm": "norm",
    "enorm": "embedding_norm", "hnorm": "hidden_norm", "eh_proj": "join", "shared_head.norm": "norm",
    "shared_head.head": "output", "embed_tokens": "embedding",
}  # fmt: skip
# In the names of tensors of a mixture of experts.
_EXPERTS = re.compile(r"\.(experts|shared_experts?|block_sparse_moe)\.|\.mlp\.gate\.")


@dataclass(frozen=True)
class MtpLayer:
    """The MTP layer of a checkpoint: what it is, and which tensors it is made of."""

    config: HeadConfig
    # Our name of each tensor -> the checkpoint's.
    tensors: Mapping[str, str]


def found(store: Contents, config: Any) -> MtpLayer | None:
    """The MTP layer among the tensors that a Store keeps for export; None where there is none. `config`: the model's, as
    transformers reads it.

    Raises CheckpointError, naming a tensor, for one that is not whole or that cannot be run."""
    text, name = text_config(config), store.source.name
    layers = named(store.extra, text.num_hidden_layers)
    if not layers:
        return None
    if len(layers) > 1:
        raise CheckpointError(f"{name} has {len(layers)} layers for multi-token prediction; only one is supported so far.")
    tensors = dict(next(iter(layers.values())))
    experts = next((name for name in tensors.values() if _EXPERTS.search(name)), None)
    if experts is not None:
        raise CheckpointError(
            f"The layer for multi-token prediction of {name} is a mixture of experts ({experts}); this is not supported yet."
        )
    _leave_out_shared(tensors, store)
    head = _config(text, tensors)
    _check(name, head, {own: store.extra[source].shape for own, source in tensors.items()}, tensors)
    return MtpLayer(head, tensors)


def load(store: Store, layer: MtpLayer, dtype: torch.dtype, device: str = "cpu") -> DraftHead:
    """The head of the MTP `layer` of a Store. Raises StoreError where its files are damaged."""
    head = built(layer.config, "meta")
    tensors = {name: store.read(store.extra[source]).to(dtype).to(device) for name, source in layer.tensors.items()}
    head.load_state_dict(tensors, assign=True)
    return head.requires_grad_(False).eval()


def named(names: Iterable[str], blocks: int) -> dict[int, dict[str, str]]:
    """Of a checkpoint's tensors `names`, those of layers that predict further tokens, for a model of so many decoder `blocks`: for
    each layer from 0 on, our name of a tensor -> the checkpoint's. Empty where there is no such layer."""
    layers: dict[int, dict[str, str]] = {}
    for name in names:
        if together := _TOGETHER.fullmatch(name):
            number, rest, inside = int(together["number"] or 0), together["rest"], together["number"] is not None
        elif (numbered := _NUMBERED.fullmatch(name)) and int(numbered["number"]) >= blocks:
            number, rest, inside = int(numbered["number"]) - blocks, numbered["rest"], False
        else:
            continue
        module, _, kind = rest.rpartition(".")
        own = None if inside else _OWN.get(module)
        # tables are the only ones that are no module's
        ours = f"layers.0.{rest}" if own is None else own if own == "embedding" else f"{own}.{kind}"
        layers.setdefault(number, {})[ours] = name
    return layers


def _leave_out_shared(tensors: dict[str, str], store: Contents) -> None:
    """Leave the layer's copies of the model's own embedding and output head out of `tensors`."""
    head = list(store.linears.values())[-1]
    for name, own in (("embedding", store.embedding.checksum), ("output.weight", head.checksum)):
        if name in tensors and store.extra[tensors[name]].checksum == own:
            del tensors[name]


def _config(text: Any, tensors: Mapping[str, str]) -> HeadConfig:
    """What the layer is: of the kinds of layers that the config `text` tells apart, the first that has all of `tensors`, or else
    the one that has most."""
    facts = TargetFacts(text.hidden_size, text.vocab_size)
    config = HeadConfig(
        "mtp", facts, taps=(-1,), layers=1, own_embedding="embedding" in tensors, options={"own_output": "output.weight" in tensors}
    )
    configs = [replace(config, layer=layer) for layer in _alone(text)]
    return max(configs, key=lambda config: len(tensors.keys() & built(config, "meta").state_dict().keys()))


def _alone(text: Any) -> Iterator[dict[str, Any]]:
    """For each kind of layer of the config `text`, the values of a config that has one such layer alone. A kind that the config
    names for this layer comes first."""
    values = text.to_dict()
    count = text.num_hidden_layers
    lists = [key for key, value in values.items() if isinstance(value, list) and len(value) == count and not key.endswith("_id")]
    kinds = [tuple(str(values[key][index]) for key in lists) for index in range(count)]
    for index in sorted({kinds.index(kind) for kind in kinds}):
        yield {**values, **{key: [values[key][index]] for key in lists}, "num_hidden_layers": 1}


def _check(name: str, config: HeadConfig, shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, str]) -> None:
    """Raise CheckpointError unless tensors of these `shapes`, by our names, are all that the layer is made of."""
    needed = {name: tuple(tensor.shape) for name, tensor in built(config, "meta").state_dict().items()}
    what = f"The layer for multi-token prediction of {name}"
    if missing := sorted(needed.keys() - shapes.keys()):
        raise CheckpointError(f"{what} is not whole: it has no {missing[0]!r}. Get the checkpoint again.")
    if unknown := sorted(shapes.keys() - needed.keys()):
        raise CheckpointError(f"{what} has a tensor {tensors[unknown[0]]!r} that fits nothing in it; not supported yet.")
    if wrong := next((name for name in sorted(needed) if shapes[name] != needed[name]), None):
        raise CheckpointError(f"{what}: {tensors[wrong]!r} has the shape {list(shapes[wrong])}, not {list(needed[wrong])}.")

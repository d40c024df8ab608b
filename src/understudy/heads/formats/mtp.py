"""Layers for multi-token prediction (MTP) as checkpoints bring them along, found by the names of their tensors.

Two ways of naming are published. Qwen3-Next, Qwen3.5 and EXAONE 4.5 have all of it under `mtp.`: `fc`, `pre_fc_norm_embedding`,
`pre_fc_norm_hidden`, `norm`, and decoder layers. DeepSeek-V3, GLM and their relatives number a layer on after the model's own:
`layers.N.eh_proj`, `enorm`, `hnorm`, `shared_head.norm`, and the decoder layer's tensors beside them. What is computed with them is
the same (heads/mtp.py)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ...errors import CheckpointError
from ...models.wrapper import text_config
from .. import DraftHead, HeadConfig
from ..files import built
from ..held import Holding, hold
from ..source import Bearer
from ..tensors import Values

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
# It reads what the model's output head is given.
TAPS = (-1,)
# In the names of tensors of a mixture of experts.
_EXPERTS = re.compile(r"\.(experts|shared_experts?|block_sparse_moe)\.|\.mlp\.gate\.")


@dataclass(frozen=True)
class MtpSource:
    """The MTP layer of a checkpoint: what it is, and which tensors it is made of."""

    bearer: Bearer
    config: HeadConfig
    # Our name of each tensor -> the checkpoint's.
    tensors: Mapping[str, str]

    def load(self, holding: Holding) -> DraftHead:
        """The head. Raises StoreError where files of the Store are damaged. The model must be prepared."""
        store = self.bearer.store
        assert store is not None, "only the head of a prepared model can be loaded"
        stored = {name: store.extra[source] for name, source in self.tensors.items()}
        values = ((name, Values(own.dtype, own.shape, partial(store.pieces, own))) for name, own in stored.items())
        return hold(built(self.config, "meta"), values, holding)


def found(bearer: Bearer) -> MtpSource | None:
    """The MTP layer that the checkpoint of `bearer` brings along; None where there is none.

    Raises CheckpointError, naming a tensor, for one that is not whole or that cannot be run."""
    text = text_config(bearer.config)
    layers = named(bearer.aside, text.num_hidden_layers)
    if not layers:
        return None
    if len(layers) > 1:
        raise CheckpointError(
            f"{bearer.name} has {len(layers)} layers for multi-token prediction; only one is supported so far."
        )
    what = f"The layer for multi-token prediction of {bearer.name}"
    copies = {"embedding": bearer.embeddings, "output.weight": bearer.outputs}
    tensors = {own: name for own, name in next(iter(layers.values())).items() if name not in copies.get(own, ())}
    experts = next((name for name in tensors.values() if _EXPERTS.search(name)), None)
    if experts is not None:
        raise CheckpointError(f"{what} is a mixture of experts ({experts}); this is not supported yet.")
    config = _config(bearer, tensors)
    _check(what, config, {own: bearer.aside[name] for own, name in tensors.items()}, tensors)
    return MtpSource(bearer, config, tensors)


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


def _config(bearer: Bearer, tensors: Mapping[str, str]) -> HeadConfig:
    """What the layer is: of the kinds of layers that the config of `bearer` tells apart, the first that has all of `tensors`, or
    else the one that has most."""
    options = {"own_output": "output.weight" in tensors}
    # It lies in the model's own checkpoint, whose fingerprint is not known before that is prepared.
    facts = replace(bearer.facts, fingerprint="")
    config = HeadConfig("mtp", facts, taps=TAPS, layers=1, own_embedding="embedding" in tensors, options=options)
    configs = [replace(config, layer=layer) for layer in _alone(text_config(bearer.config))]
    return max(configs, key=lambda config: len(tensors.keys() & built(config, "meta").state_dict().keys()))


def _alone(text: Any) -> Iterator[dict[str, Any]]:
    """For each kind of layer of the config `text`, the values of a config that has one such layer alone."""
    values = text.to_dict()
    count = text.num_hidden_layers
    lists = [key for key, value in values.items() if isinstance(value, list) and len(value) == count and not key.endswith("_id")]
    kinds = [tuple(str(values[key][index]) for key in lists) for index in range(count)]
    for index in sorted({kinds.index(kind) for kind in kinds}):
        yield {**values, **{key: [values[key][index]] for key in lists}, "num_hidden_layers": 1}


def _check(what: str, config: HeadConfig, shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, str]) -> None:
    """Raise CheckpointError unless tensors of these `shapes`, by our names, are all that the layer is made of. `what`: its name in
    messages."""
    needed = {name: tuple(tensor.shape) for name, tensor in built(config, "meta").state_dict().items()}
    if missing := sorted(needed.keys() - shapes.keys()):
        published = _published(missing[0], next(iter(tensors.values())))
        raise CheckpointError(f"{what} is not whole: there is no tensor {published!r}. Get the checkpoint again.")
    if unknown := sorted(shapes.keys() - needed.keys()):
        raise CheckpointError(f"{what} has a tensor {tensors[unknown[0]]!r} that fits nothing in it; not supported yet.")
    if wrong := next((name for name in sorted(needed) if shapes[name] != needed[name]), None):
        raise CheckpointError(f"{what}: {tensors[wrong]!r} has the shape {list(shapes[wrong])}, not {list(needed[wrong])}.")


def _published(own: str, other: str) -> str:
    """What the checkpoint would call the tensor that is `own` by our names, where it has one called `other`."""
    module, _, kind = own.rpartition(".")
    names = [published for published, ours in _OWN.items() if ours == module]
    if together := _TOGETHER.fullmatch(other):
        before = other[: together.start("number" if together["number"] else "rest")].removesuffix("layers.")
        return before + (f"{names[0]}.{kind}" if names else own)
    numbered = _NUMBERED.fullmatch(other)
    assert numbered is not None
    return other[: numbered.start("rest")] + (f"{names[-1]}.{kind}" if names else own.removeprefix("layers.0."))

"""Layers for multi-token prediction (MTP) as checkpoints bring them along, found by the names of their tensors.

Two ways of naming are published. Qwen3-Next, Qwen3.5 and EXAONE 4.5 have all of it under `mtp.`: `fc`, `pre_fc_norm_embedding`,
`pre_fc_norm_hidden`, `norm`, and decoder layers. DeepSeek-V3, GLM and their relatives number a layer on after the model's own:
`layers.N.eh_proj`, `enorm`, `hnorm`, `shared_head.norm`, and the decoder layer's tensors beside them. What is computed with them is
the same (heads/mtp.py). What the decoder layer's tensors are, those of experts among them, is asked of the table of names by which
transformers loads the model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError
from ...models.mixtures.experts import stacks
from ...models.stock.bare import STACKED
from ...models.stock.names import finder
from ...models.stock.wrapper import text_config
from ...weights.store import Store
from .. import DraftHead, HeadConfig
from ..files import built
from ..held import Holding, hold
from ..layers import stock_decoder
from ..source import Bearer
from ..tensors import Values, unpacked_chunks

# What it is called among the heads that are found in a checkpoint.
NAME = "mtp"
# In names of tensors of such layers of any kind.
_ANY = re.compile(r"(^|\.)mtp(_|\.)")
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
# Before our names of the decoder layer's tensors.
_INSIDE = "layers.0."
# It reads what the model's output head is given.
TAPS = (-1,)


@dataclass(frozen=True)
class MtpSource:
    """The MTP layer of a checkpoint: what it is, and which tensors it is made of."""

    bearer: Bearer
    config: HeadConfig
    # Our name of each tensor -> those of the checkpoint whose rows one after another it is.
    tensors: Mapping[str, tuple[str, ...]]

    def load(self, holding: Holding) -> DraftHead:
        """The head. Raises StoreError where files of the Store are damaged, CheckpointError for what cannot be weights. The model
        must be prepared."""
        head = built(self.config, "meta")
        shapes = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
        values = ((name, self._values(name, shapes[name])) for name in self.tensors)
        return hold(head, values, holding, self._refuse_bad_values)

    def _refuse_bad_values(self, name: str, tensor: Tensor) -> None:
        """Raise CheckpointError where weights are no numbers."""
        if not bool(tensor.isfinite().all()):
            first, *more = self.tensors[name]
            beside = f", or one of {len(more)} beside it," if more else ""
            raise CheckpointError(f"{_what(self.bearer)} in which {first!r}{beside} has NaN or infinite values. Get it again.")

    def _values(self, name: str, shape: tuple[int, ...]) -> Values:
        """Those of the head's tensor `name`, which has this shape."""
        sources = self.tensors[name]
        types = {self._type(source): source for source in sources}
        if len(types) > 1:
            unlike = " and ".join(map(repr, sorted(types.values())[:2]))
            raise CheckpointError(f"{_what(self.bearer)} in which {unlike} are of unlike types; not supported yet.")
        return Values(next(iter(types)), shape, lambda: chain.from_iterable(map(self._chunks, sources)))

    def _type(self, source: str) -> torch.dtype:
        """That of the numbers of the checkpoint's tensor `source`."""
        packed = self.bearer.packed.get(source)
        return self._store.extra[source].dtype if packed is None else packed.dtype

    def _chunks(self, source: str) -> Iterator[Tensor]:
        """The bytes of the checkpoint's tensor `source`: of the weights, where it is published as codes."""
        store, info = self._store, self.bearer.packed.get(source)
        if info is None:
            return store.pieces(store.extra[source])
        codes, scales = (store.extra[part.name] for part in info.published)
        return unpacked_chunks(info, store.pieces(codes), store.read(scales))

    @property
    def _store(self) -> Store:
        assert self.bearer.store is not None, "only the head of a prepared model can be loaded"
        return self.bearer.store


def found(bearer: Bearer) -> MtpSource | None:
    """The MTP layer that the checkpoint of `bearer` brings along; None where there is none.

    Raises CheckpointError, naming a tensor, for one that is not whole or that cannot be run."""
    if NAME not in bearer.found:
        bearer.found[NAME] = _sought(bearer)
    known = bearer.found[NAME]
    assert known is None or isinstance(known, MtpSource)
    return known


def _sought(bearer: Bearer) -> MtpSource | None:
    layers = named(bearer.aside, text_config(bearer.config).num_hidden_layers)
    if not layers:
        if other := next((name for name in bearer.aside if _ANY.search(name)), None):
            raise CheckpointError(f"{_what(bearer)} of a kind that is not known, which {other!r} is of; not supported yet.")
        return None
    if len(layers) > 1:
        raise CheckpointError(
            f"{bearer.name} has {len(layers)} layers for multi-token prediction; only one is supported so far."
        )
    copies = {"embedding": bearer.embeddings, "output.weight": bearer.outputs}
    tensors = {own: name for own, name in next(iter(layers.values())).items() if name not in copies.get(own, ())}
    for name in tensors.values():
        if (info := bearer.packed.get(name)) is not None and info.packed is not None and info.packed.fault:
            raise CheckpointError(f"{_what(bearer)} in which {info.packed.codes.name!r} {info.packed.fault}.")
    config, sources = _config(bearer, tensors)
    check_whole(_what(bearer), config, sources, tensors, {name: bearer.aside[name] for name in tensors.values()})
    return MtpSource(bearer, config, sources)


def _what(bearer: Bearer) -> str:
    return f"{bearer.name} brings a layer for multi-token prediction"


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
        ours = f"{_INSIDE}{rest}" if own is None else own if own == "embedding" else f"{own}.{kind}"
        layers.setdefault(number, {})[ours] = name
    return layers


def _config(bearer: Bearer, tensors: Mapping[str, str]) -> tuple[HeadConfig, dict[str, tuple[str, ...]]]:
    """What the layer is: of the kinds of layers that the model of `bearer` has, the first that has all of `tensors`, or else the
    one that has most. With it, which of the checkpoint's tensors each of its own is made of."""
    options = {"own_output": "output.weight" in tensors}
    # It lies in the model's own checkpoint, whose fingerprint is not known before that is prepared.
    facts = replace(bearer.facts, fingerprint="")
    config = HeadConfig("mtp", facts, taps=TAPS, layers=1, own_embedding="embedding" in tensors, options=options)
    configs = [replace(config, layer=layer) for layer in _up_to_each_kind(config, text_config(bearer.config))]
    kinds = [(config, _sources(config, tensors)) for config in configs]
    return max(kinds, key=lambda kind: sum(map(len, kind[1].values())))


def _up_to_each_kind(config: HeadConfig, text: Any) -> Iterator[dict[str, Any]]:
    """For each kind of layer of the text model that the config `text` describes, the values of a config whose last layer is the
    first of the kind. Where it says of which kind layers for multi-token prediction are, the last one is of that kind."""
    values = text.to_dict()
    count = text.num_hidden_layers
    lists = [key for key, value in values.items() if isinstance(value, list) and len(value) == count and not key.endswith("_id")]
    layers = stock_decoder(replace(config, layer=values)).layers
    told = {key: values.get(f"mtp_{key}") for key in ("layer_types", "mlp_layer_types")}
    wanted = {key: own[0] for key, own in told.items() if own and key in lists}
    seen = set()
    for index in range(count):
        shapes = tuple((name, tuple(tensor.shape)) for name, tensor in layers[index].state_dict().items())
        cut = {key: [*values[key][:index], wanted.get(key, values[key][index])] for key in lists}
        kind = (*(str(each[-1]) for each in cut.values()), shapes)
        if kind not in seen:
            seen.add(kind)
            yield {**values, **cut, "num_hidden_layers": index + 1}


def _sources(config: HeadConfig, tensors: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Of the published `tensors`, by our names, those that each tensor of a head of `config` is made of, if there are such."""
    inside = f"layers.{config.layer['num_hidden_layers'] - 1}."
    theirs = {own.replace(_INSIDE, inside, 1) if own.startswith(_INSIDE) else own: name for own, name in tensors.items()}
    find = finder(stock_decoder(config), [name for name in theirs if name.startswith(inside)])
    made: dict[str, tuple[str, ...]] = {}
    for own in built(config, "meta").state_dict():
        if own.startswith(_INSIDE):
            made[own] = tuple(theirs[name] for name in find.sources(own.replace(_INSIDE, inside, 1)))
        elif own in tensors:
            made[own] = (tensors[own],)
    return {own: names for own, names in made.items() if names}


def check_whole(
    what: str, config: HeadConfig, sources: Mapping[str, Sequence[str]], tensors: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:  # fmt: skip
    """Raise CheckpointError unless the `sources` of a head of `config` are all of its published `tensors`, which have these
    `shapes`, and it has all that it needs. `what`: how messages begin."""
    head = built(config, "meta")
    needed = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    experts = {name: stack.experts for name, stack in stacks(head).items()}
    other = next(iter(tensors.values()))
    if missing := sorted(needed.keys() - sources.keys()):
        lacking = _published(missing[0], other)
        raise CheckpointError(f"{what} that is not whole: there is no tensor {lacking!r}. Get the checkpoint again.")
    for own, names in sources.items():
        if len(names) > 1 and own in experts and (lack := _lacking(names, experts[own])) is not None:
            raise CheckpointError(f"{what} that is not whole: there is no tensor {lack!r}. Get the checkpoint again.")
    used = {name for names in sources.values() for name in names}
    more = {name for own, names in sources.items() if len(names) > 1 and own in experts for name in _beyond(names, experts[own])}
    if unknown := sorted((set(tensors.values()) - used) | more):
        raise CheckpointError(f"{what} with a tensor {unknown[0]!r} that fits nothing in it; not supported yet.")
    for own in sorted(needed):
        for name, shape in zip(sources[own], _pieces(needed[own], [shapes[name] for name in sources[own]]), strict=True):
            if shapes[name] != shape:
                raise CheckpointError(f"{what} in which {name!r} has the shape {list(shapes[name])}, not {list(shape)}.")


def _pieces(shape: tuple[int, ...], found: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The shapes that tensors must have whose rows one after another are a tensor of `shape`; `found` are those that they have."""
    if len(found) == 1:
        return [shape]
    if len(shape) == STACKED:
        return [(shape[0] * shape[1] // len(found), shape[2])] * len(found)
    # where rows are too few or too many, the last one is at fault
    rows = [each[0] for each in found[:-1]]
    return [(count, *shape[1:]) for count in (*rows, shape[0] - sum(rows))]


def _steps(name: str) -> tuple[str, int, str]:
    """A name of a tensor of one expert: what is before the number of the expert, that, and the rest."""
    steps = name.split(".")
    place = max(index for index, step in enumerate(steps) if step.isdigit())
    return ".".join((*steps[:place], "")), int(steps[place]), ".".join(("", *steps[place + 1 :]))


def _lacking(names: Iterable[str], experts: int) -> str | None:
    """The first tensor that is not among `names`, which are of one expert each, though one of the `experts` needs it."""
    there = set(names)
    kinds = dict.fromkeys((before, after) for before, _, after in map(_steps, there))
    needed = (f"{before}{expert}{after}" for before, after in sorted(kinds) for expert in range(experts))
    return next((name for name in needed if name not in there), None)


def _beyond(names: Iterable[str], experts: int) -> list[str]:
    """Those of `names`, which are of one expert each, of which the expert is none of so many `experts`."""
    return [name for name in names if _steps(name)[1] >= experts]


def _published(own: str, other: str) -> str:
    """What the checkpoint would call the tensor that is `own` by our names, where it has one called `other`."""
    module, _, kind = own.rpartition(".")
    names = [published for published, ours in _OWN.items() if ours == module]
    if together := _TOGETHER.fullmatch(other):
        before = other[: together.start("number" if together["number"] else "rest")].removesuffix("layers.")
        return before + (f"{names[0]}.{kind}" if names else own)
    numbered = _NUMBERED.fullmatch(other)
    assert numbered is not None
    return other[: numbered.start("rest")] + (f"{names[-1]}.{kind}" if names else own.removeprefix(_INSIDE))

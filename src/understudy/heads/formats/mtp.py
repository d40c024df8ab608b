"""Layers for multi-token prediction (MTP) as checkpoints bring them along, found by the names of their tensors (`mtp_names`). What
is computed with them is the same in all (heads/mtp.py). What the decoder layer's tensors are, those of experts among them, is asked
of the table of names by which transformers loads the model."""

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
from ...models.stock.shape import mixed_states
from ...models.stock.wrapper import text_config
from ...weights.entries import Stored
from ...weights.store import Store
from .. import DraftHead, HeadConfig
from ..files import built
from ..held import Holding, hold
from ..layers import stock_decoder
from ..source import Bearer
from ..tensors import Values, unpacked_chunks
from .mtp_names import ANY, INSIDE, Naming, named, published

# What it is called among the heads that are found in a checkpoint.
NAME = "mtp"
# It reads what the model's output head is given.
TAPS = (-1,)


@dataclass(frozen=True)
class MtpSource:
    """The MTP layers of a checkpoint: what they are, and which tensors they are made of."""

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
        return self._stored(source).dtype if packed is None else packed.dtype

    def _chunks(self, source: str) -> Iterator[Tensor]:
        """The bytes of the checkpoint's tensor `source`: of the weights, where it is published as codes."""
        store, info = self._store, self.bearer.packed.get(source)
        if info is None:
            return store.pieces(self._stored(source))
        codes = store.pieces(store.extra[info.published[0].name])
        return unpacked_chunks(info, codes, lambda part: store.read(store.extra[part.name]))

    def _stored(self, source: str) -> Stored:
        """Where the checkpoint's tensor `source` lies, which may be one of the model's own."""
        return self._store.extra.get(source) or self._store.shared[source]

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
    naming = named(bearer.aside, text_config(bearer.config).num_hidden_layers)
    if not naming.layers:
        if other := next((name for name in bearer.aside if ANY.search(name)), None):
            raise CheckpointError(f"{_what(bearer)} of a kind that is not known, which {other!r} is of; not supported yet.")
        return None
    if (states := mixed_states(bearer.config)) > 1:
        raise CheckpointError(f"{_what(bearer)} that reads {states} states side by side; not supported yet.")
    count = max(naming.layers) + 1
    if lacking := set(range(count)) - naming.layers.keys():
        raise CheckpointError(f"{_what(bearer)} that is not whole: of {count} layers there is no {min(lacking) + 1}. Get it again.")
    config: HeadConfig | None = None
    made: dict[str, tuple[str, ...]] = {}
    for layer in range(count):
        tensors = _tensors(bearer, naming, layer)
        if count > 1 and (table := tensors.get("embedding") or tensors.get("output.weight")):
            own = f"{count} layers for multi-token prediction, and tables of their own, such as {table!r}"
            raise CheckpointError(f"{bearer.name} brings {own}; not supported yet.")
        if config is None:
            config, sources = _config(bearer, tensors, naming)
        else:
            sources = _sources(config, tensors)
        shapes = {name: bearer.aside.get(name) or bearer.shared[name] for name in tensors.values()}
        check_whole(_what(bearer), config, sources, tensors, shapes)
        # what layers have in common is the first one's
        once = naming.common.values() if layer else ()
        made |= {_numbered(own, layer): names for own, names in sources.items() if names[0] not in once}
    assert config is not None
    if count > 1:
        options = {**config.options, "feed": naming.feed, "shared": bool(naming.common)}
        config = replace(config, layers=count, heads=count, options=options)
    return MtpSource(bearer, config, made)


def _tensors(bearer: Bearer, naming: Naming, layer: int) -> dict[str, str]:
    """Our names of what `layer` is made of, as if it were alone -> the checkpoint's; copies of the model's tables left out.

    Raises CheckpointError for codes that cannot be used."""
    copies = {"embedding": bearer.embeddings, "output.weight": bearer.outputs}
    there = bearer.aside.keys() | bearer.shared.keys()
    tensors = {own: name for own, name in naming.of(layer).items() if name in there and name not in copies.get(own, ())}
    for name in tensors.values():
        if (info := bearer.packed.get(name)) is not None and info.packed is not None and info.packed.fault:
            raise CheckpointError(f"{_what(bearer)} in which {info.packed.codes.name!r} {info.packed.fault}.")
    return tensors


def _numbered(own: str, layer: int) -> str:
    """The name of the tensor `own` of a head that has one layer in one where that is number `layer`."""
    return re.sub(r"^(\w+)\.0\.", rf"\g<1>.{layer}.", own)


def _what(bearer: Bearer) -> str:
    return f"{bearer.name} brings a layer for multi-token prediction"


def _config(bearer: Bearer, tensors: Mapping[str, str], naming: Naming) -> tuple[HeadConfig, dict[str, tuple[str, ...]]]:
    """What a layer is: of the kinds of layers that the model of `bearer` has, the first that has all of `tensors`, or else the
    one that has most. With it, which of the checkpoint's tensors each of its own is made of."""
    options = {"own_output": "output.weight" in tensors}
    # It lies in the model's own checkpoint, whose fingerprint is not known before that is prepared.
    facts = replace(bearer.facts, fingerprint="")
    config = HeadConfig("mtp", facts, taps=TAPS, layers=1, own_embedding="embedding" in tensors, options=options)
    text = text_config(bearer.config)
    configs = [replace(config, layer=layer) for layer in _up_to_each_kind(config, text, naming)]
    kinds = [(config, _sources(config, tensors)) for config in configs]
    return max(kinds, key=lambda kind: sum(map(len, kind[1].values())))


def _up_to_each_kind(config: HeadConfig, text: Any, naming: Naming) -> Iterator[dict[str, Any]]:
    """For each kind of layer of the text model that the config `text` describes, the values of a config whose last layer is the
    first of the kind. Where it says of which kind layers for multi-token prediction are, or names do, the last one is of that kind.

    Raises CheckpointError where several layers are of unlike kinds."""
    values = text.to_dict()
    count = text.num_hidden_layers
    lists = [key for key, value in values.items() if isinstance(value, list) and len(value) == count and not key.endswith("_id")]
    layers = stock_decoder(replace(config, layer=values)).layers
    told = {key: values.get(f"mtp_{key}") for key in ("layer_types", "mlp_layer_types")}
    if unlike := next((key for key, own in told.items() if len({*(own or ())[: len(naming.layers)]}) > 1), None):
        raise CheckpointError(f"The layers for multi-token prediction are of unlike kinds (mtp_{unlike}); not supported yet.")
    wanted = {key: kind for key, kind in naming.kinds.items() if key in lists}
    wanted |= {key: own[0] for key, own in told.items() if own and key in lists}
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
    theirs = {own.replace(INSIDE, inside, 1) if own.startswith(INSIDE) else own: name for own, name in tensors.items()}
    find = finder(stock_decoder(config), [name for name in theirs if name.startswith(inside)])
    made: dict[str, tuple[str, ...]] = {}
    for own in built(config, "meta").state_dict():
        if own.startswith(INSIDE):
            made[own] = tuple(theirs[name] for name in find.sources(own.replace(INSIDE, inside, 1)))
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
    other = next((name for own, name in tensors.items() if own.startswith(INSIDE)), next(iter(tensors.values())))
    if missing := sorted(needed.keys() - sources.keys()):
        lacking = published(missing[0], other)
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

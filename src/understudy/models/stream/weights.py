"""The weights of a Store under a plan: those in fast memory, and the stream of the others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...codecs import FALLBACK, codec
from ...devices import Device
from ...kernels.pack import BLOCK, blocks_of, unblock
from ...plan.placement import Plan
from ...plan.residents import spread
from ...quantizers import Quantizer, quantizer
from ...tiers import ReadSettings, Streaming
from ...tiers.expert_route import ExpertRoute, Leg
from ...tiers.ring import Ring
from ...tiers.route import FixedRoute, Route
from ...weights.entries import LinearEntry, Part, Stored
from ...weights.store import Store
from ..mixtures.expert_copies import expert_copies
from ..sharing import share
from ..stock.latent import attend_over_states
from .exact_linear import ExactLinear, decoding_bytes
from .hauls import Haul, hauls_of, largest_haul
from .load import extent, read_all, read_whole, refuse_wrong_decoding, whole_bytes
from .supply import PartRef

# kind ("shared", "substitute", "resident"), name of the tensor, number of the Linear or part
Key = tuple[str, str, int]


def held(entry: LinearEntry, drafts: bool) -> bool:
    """Whether the substitute of a Linear is kept: to draft with, to decode with, or because it is the weight itself."""
    return drafts or codec(entry.codec).needs_substitute or not entry.parts


def largest(entries: Iterable[LinearEntry]) -> int:
    """Bytes of the largest part that must be decoded into a buffer; 0: none must be."""
    decoded = (entry for entry in entries if not codec(entry.codec).in_place)
    return max((whole_bytes(e.shape[1], part.blocks, e.dtype) for e in decoded for part in e.parts), default=0)


@dataclass(frozen=True)
class Portion:
    """The blocks of a Linear that a device multiplies by: its parts, which follow one another."""

    first: int
    # 0: the device has none of this Linear.
    blocks: int
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, entry: LinearEntry, parts: Sequence[Part]) -> Portion:
        """That of some `parts` of a Linear; all of its blocks where it has no parts at all."""
        if not entry.parts:
            return cls(0, blocks_of(entry.shape[0]), ())
        first = parts[0].first_block if parts else 0
        shifted = tuple(replace(part, first_block=part.first_block - first) for part in parts)
        return cls(first, sum(part.blocks for part in parts), shifted)

    def cut(self, entry: LinearEntry) -> LinearEntry:
        """The Linear of these blocks alone; the entry as it is where these are all."""
        if self.blocks == blocks_of(entry.shape[0]):
            return entry
        outputs = min(entry.shape[0] - self.first * BLOCK, self.blocks * BLOCK)
        # No checksum is known of some of its rows.
        return replace(entry, shape=(outputs, entry.shape[1]), parts=self.parts, checksum="")


def portions_of(
    entries: Sequence[LinearEntry], mine: Collection[int] | None, whole: Collection[int] | None = None
) -> list[Portion]:
    """The portion of each Linear whose parts are numbers `mine`; None: all of them. `whole`: the Linears that are this device's
    where they have no parts; None: all of them."""
    portions = []
    number = 0
    for index, entry in enumerate(entries):
        own = [part for place, part in enumerate(entry.parts, number) if mine is None or place in mine]
        number += len(entry.parts)
        here = bool(entry.parts) or whole is None or index in whole
        portions.append(Portion.of(entry, own) if here else Portion(0, 0, ()))
    return portions


class PartStream:
    """The parts of a model that a device has: some stay there, the others stream.

    `parts`: all of them in the order of a pass. `stored`: where each part of the model lies, by number; `residents`: the bytes of
    those that stay, by number."""

    store: Store
    settings: ReadSettings
    device: Device
    # Bytes of host memory that may hold them in front of the disk.
    host_bytes: int
    stored: list[Stored]
    parts: list[PartRef]
    residents: dict[int, Tensor]
    # of the model's Linears, in the order of a pass
    entries: list[LinearEntry]

    def hauls(self, capacity: int) -> list[Haul]:
        """What comes by one copy each through a ring of `capacity` bytes, in the order of a pass: all that is not resident."""
        apart, most = self.device.own_memory, max(entry.experts for entry in self.entries)
        streamed = [(p.number, p.linear if apart else self._owner(p, most)) for p in self.parts if p.number not in self.residents]
        extents = {number: extent(self.store, self.stored[number]) for number, _ in streamed}
        return hauls_of(streamed, extents, largest_haul(capacity, accelerator=apart))

    def _owner(self, part: PartRef, most: int) -> int:
        """0 for what every pass uses, else a number of the expert that `part` belongs to; Linears have up to `most` experts."""
        entry = self.entries[part.linear]
        if not entry.experts:
            return 0
        return 1 + part.linear * most + part.first_block * BLOCK // entry.spec.outputs

    def ring(self, capacity: int, hauls: Sequence[Haul]) -> Ring | None:
        """The stream of `hauls`; None when there is nothing to stream."""
        if not hauls:
            return None

        def check(number: int, data: Tensor) -> None:
            for part, start in zip(hauls[number].parts, hauls[number].starts, strict=True):
                stored = self.stored[part]
                self.store.check(stored, data[start + stored.lead : start + stored.span])

        extents = [haul.extent for haul in hauls]
        places = spread([extent.nbytes for extent in extents], self.host_bytes)
        streaming = Streaming(extents, self._route(hauls), self.settings, check, sorted(places))
        return self.device.ring(streaming, capacity)

    def _route(self, hauls: Sequence[Haul]) -> Route:
        """The order in which `hauls` are brought: fixed, or with stretches of which a pass uses what its experts are. A device with
        memory of its own knows these too late."""
        if self.device.own_memory or not any(entry.experts for entry in self.entries):
            return FixedRoute(range(len(hauls)))
        mixtures = {part.number: self.entries[part.linear].mixture for part in self.parts}
        owners = [mixtures[haul.parts[0]] for haul in hauls]
        found = groupby(range(len(hauls)), key=owners.__getitem__)
        return ExpertRoute([Leg(tuple(numbers), chosen=bool(owner)) for owner, numbers in found])


class Weights(PartStream):
    """The weights of a model on a device, and where those that stream come from.

    `parts`: every part in the order of a pass. `residents`: parts that stay, by number. `substitutes`: a Linear's tensors.
    A Linear that the plan keeps whole becomes one whose substitute is the weight, of which nothing streams. One that it keeps
    decoded has its exact weight beside its substitute. `drafts`: all substitutes are held; `scores`: that of the output head is.

    Raises StoreError or TransferError where what is read is not what was prepared, UsageError where the device
    decodes it wrongly."""

    def __init__(
        self,
        store: Store,
        plan: Plan,
        settings: ReadSettings,
        device: Device,
        *,
        drafts: bool,
        scores: bool = False,
        progress: Callable[[float, float], None] | None = None,
    ) -> None:
        self.store = store
        self.settings = settings
        self.device = device
        self.host_bytes = plan.host_bytes
        self.entries = [store.linears[spec.module] for spec in store.layout.linears]
        # every part in the Store, by number: those of Linears that are kept whole too
        self.stored = [part.stored for entry in self.entries for part in entry.parts]
        self.parts = streamable(self.entries, plan.whole | plan.decoded, plan.parts)
        # Linears of which anything is here; None: all.
        self.mine = plan.linears
        self.portions = portions_of(self.entries, plan.parts, self.mine)
        shared = {index: self.entries[index] for index in sorted(plan.whole)}
        whole = read_whole(store, shared, {}, settings, device, progress)
        for index in whole:
            self.entries[index] = replace(self.entries[index], quantizer="exact", codec=FALLBACK, parts=(), substitute={})
        wanted = self._wanted(plan, drafts, scores)
        tensors = dict(zip(wanted, read_all(store, list(wanted.values()), settings, device, progress), strict=True))
        self.shared = {name: tensor for (kind, name, _), tensor in tensors.items() if kind == "shared"}
        self.residents = {n: tensor.view(torch.uint8) for (kind, _, n), tensor in tensors.items() if kind == "resident"}
        self.substitutes: list[dict[str, Tensor]] = [{} for _ in self.entries]
        for (kind, name, number), tensor in tensors.items():
            if kind == "substitute":
                self.substitutes[number][name] = tensor
        for index, weight in whole.items():
            self.substitutes[index]["weight"] = weight
        decoded = {index: self.entries[index] for index in sorted(plan.decoded)}
        copies = {} if device.own_memory else {index: self.substitutes[index] for index in decoded}
        weights = read_whole(store, decoded, copies, settings, device, progress)
        weights |= {i: self.substitutes[i]["weight"] for i, entry in enumerate(self.entries) if not entry.parts and self._here(i)}
        self._keep(weights)
        # Linears whose weights others have, see `take`.
        self.taken: set[int] = set()
        self.quantizers: list[Quantizer] = [quantizer(entry.quantizer) for entry in self.entries]
        self._buffer = device.arena(decoding_bytes(largest(self.entries), device))
        self.linears = [
            self._exact(portion, index, bare=index in weights) for index, portion in enumerate(self.portions)
        ]
        refuse_wrong_decoding(store, self.linears, settings)

    def _here(self, index: int) -> bool:
        """Is anything of Linear `index` on this device?"""
        return self.mine is None or index in self.mine

    def _exact(self, portion: Portion, index: int, bare: bool) -> ExactLinear:
        """What multiplies by this device's portion of Linear `index`."""
        entry, copy, tensors = self.entries[index], self.quantizers[index], self.substitutes[index]
        cut = portion.cut(entry)
        if cut is not entry and tensors:
            tensors = dict(copy.cut(tensors, portion.first, portion.blocks))
        return ExactLinear(cut, copy, tensors, self._buffer, self.device, bare=bare)

    def _keep(self, weights: Mapping[int, Tensor]) -> None:
        """Give each Linear whose exact weight lies here as it is one resident part: all of it."""
        for index, weight in sorted(weights.items()):
            number = len(self.stored) + index
            self.residents[number] = weight
            self.parts.append(PartRef(number, index, 0, len(weight), 0))

    def take(self, index: int) -> Tensor:
        """The exact weight [N, K] of Linear `index`, which the plan keeps whole: nothing multiplies by it here from now on."""
        entry, number = self.entries[index], len(self.stored) + index
        weight = unblock(self.residents.pop(number), entry.shape[0])
        self.parts = [part for part in self.parts if part.number != number]
        # what multiplies has them too
        self.substitutes[index].clear()
        self.taken.add(index)
        return weight

    def _wanted(self, plan: Plan, drafts: bool, scores: bool) -> dict[Key, Stored]:
        """What is read into fast memory for good: norms and biases, substitutes that are held, resident parts."""
        # What no Linear is comes with the head.
        shared = self.store.shared if self._here(len(self.entries) - 1) else {}
        wanted: dict[Key, Stored] = {("shared", name, 0): stored for name, stored in shared.items()}
        for index, entry in enumerate(self.entries):
            if self._here(index) and held(entry, drafts or (scores and index == len(self.entries) - 1)):
                wanted |= {("substitute", name, index): stored for name, stored in entry.substitute.items()}
        return wanted | {("resident", "", number): self.stored[number] for number in sorted(plan.residents)}

    def drafts(self, dtype: torch.dtype) -> dict[int, Callable[[Any], Tensor]]:
        """The linear map [n, K] -> [n, N] of the substitute of each Linear that is here, by its number."""
        here = (index for index in range(len(self.entries)) if self._here(index) and index not in self.taken)
        return {index: self._draft(index, dtype) for index in here}

    def head(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """The linear map of the output head's substitute."""
        return self._draft(len(self.entries) - 1, dtype)

    def _draft(self, index: int, dtype: torch.dtype) -> Callable[[Any], Tensor]:
        entry, copy, tensors = self.entries[index], self.quantizers[index], self.substitutes[index]
        if entry.experts:
            return expert_copies(copy, tensors, entry.shape, entry.experts, dtype, self.device)
        return self.device.draft_product(copy, tensors, entry.shape, dtype)

    def drop(self) -> None:
        """Let go of all that lies on the device: nothing is computed with it any more."""
        self.residents, self.shared, self.linears = {}, {}, []
        self.substitutes = [{} for _ in self.entries]
        self._buffer = self._buffer.new_empty(0)

    def share(self, module: nn.Module, dtype: torch.dtype, directory: Path | None, *, states: bool = False) -> None:
        """Give `module` norms and biases, one tensor for both views, and bring its buffers to the device. What they are called is
        kept in `directory`, if there is one. `states`: it attends over latent states, with what would widen them."""
        share(module, self.store.layout, self.shared, dtype, directory)
        if states:
            numbers = {spec.module: index for index, spec in enumerate(self.store.layout.linears)}

            def weight_of(path: str) -> Tensor:
                # one of few outputs does not stream: it is here already
                own = self.take(numbers[path]) if path in numbers else module.get_parameter(f"{path}.weight").data
                return own.to(dtype)

            attend_over_states(module, weight_of, self.device.head_product)
        for buffer in module.buffers():
            buffer.data = buffer.to(self.device.where)


def streamable(
    entries: Sequence[LinearEntry], whole: Collection[int] = (), mine: Collection[int] | None = None
) -> list[PartRef]:
    """The parts of all Linears but those in `whole`, in the order of a pass. Numbers count the parts of all Linears. `mine`: those
    that a device has (None: all); the first of each Linear begins with its block 0."""
    parts = []
    number = 0
    for index, (entry, portion) in enumerate(zip(entries, portions_of(entries, mine), strict=True)):
        for part in entry.parts:
            if index not in whole and (mine is None or number in mine):
                first = part.first_block - portion.first
                parts.append(PartRef(number, index, first, part.blocks, part.stored.nbytes, part.stored.lead))
            number += 1
    return parts

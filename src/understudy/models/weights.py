"""What of a Store is held in fast memory under a plan, and how each part of each weight is made whole again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..codecs import FALLBACK, codec
from ..devices import Device
from ..plan.placement import Plan
from ..quantizers import Quantizer, quantizer
from ..tiers import ReadSettings, Streaming
from ..tiers.ring import Ring
from ..tiers.route import FixedRoute
from ..weights.entries import LinearEntry, Stored
from ..weights.store import Store
from .exact_linear import ExactLinear
from .load import extent, read_all, read_whole, whole_bytes
from .streamed import share
from .supply import PartRef

Key = tuple[str, str, int]  # kind, name, number


def held(entry: LinearEntry, drafts: bool) -> bool:
    """Is the substitute of this Linear kept? To draft with, to decode with, or because it is the weight itself."""
    return drafts or codec(entry.codec).needs_substitute or not entry.parts


def largest(entries: Iterable[LinearEntry]) -> int:
    """Bytes of the largest part that must be decoded into a buffer."""
    made = (entry for entry in entries if not codec(entry.codec).in_place)
    return max((whole_bytes(e.shape[1], part.blocks, e.dtype) for e in made for part in e.parts), default=0)


class Weights:
    """`parts` in the order of a pass, `residents` by part number, `substitutes` and `shared` by name: all in one arena.

    A Linear that the plan keeps whole is as one whose quantiser is `exact`: its substitute is the weight, and nothing streams.

    Raises StoreError or TransferError when what is read is not what was prepared."""

    def __init__(
        self,
        store: Store,
        plan: Plan,
        settings: ReadSettings,
        device: Device,
        *,
        drafts: bool,
        progress: Callable[[float, float], None] | None = None,
    ) -> None:
        self.store = store
        self.settings = settings
        self.device = device
        self.host_bytes = plan.host_bytes
        self.entries = [store.linears[spec.module] for spec in store.layout.linears]
        self.parts: list[PartRef] = []
        self.stored: list[Stored] = []
        for index, entry in enumerate(self.entries):
            for part in entry.parts:
                if index not in plan.whole:
                    number, blocks = len(self.stored), (part.first_block, part.blocks)
                    self.parts.append(PartRef(number, index, *blocks, part.stored.nbytes, part.stored.lead))
                self.stored.append(part.stored)
        whole = {index: read_whole(store, self.entries[index], settings, device, progress) for index in sorted(plan.whole)}
        for index in whole:
            self.entries[index] = replace(self.entries[index], quantizer="exact", codec=FALLBACK, parts=(), substitute={})
        wanted = self._wanted(plan, drafts)
        tensors = dict(zip(wanted, read_all(store, list(wanted.values()), settings, device, progress), strict=True))
        self.shared = {name: tensor for (kind, name, _), tensor in tensors.items() if kind == "shared"}
        self.residents = {
            number: tensor.view(torch.uint8) for (kind, _, number), tensor in tensors.items() if kind == "resident"
        }
        self.substitutes: list[dict[str, Tensor]] = [{} for _ in self.entries]
        for (kind, name, number), tensor in tensors.items():
            if kind == "substitute":
                self.substitutes[number][name] = tensor
        for index, weight in whole.items():
            self.substitutes[index]["weight"] = weight
        self._buffer = device.arena(largest(self.entries))
        self.quantizers: list[Quantizer] = [quantizer(entry.quantizer) for entry in self.entries]
        self.linears = [
            ExactLinear(entry, quantizer, tensors, self._buffer, device, bare=not entry.parts)
            for entry, quantizer, tensors in zip(self.entries, self.quantizers, self.substitutes, strict=True)
        ]
        for index, entry in enumerate(self.entries):
            if not entry.parts:  # the substitute is the weight itself: one part, resident
                number, weight = len(self.stored) + index, self.substitutes[index]["weight"]
                self.residents[number] = weight
                self.parts.append(PartRef(number, index, 0, len(weight), 0))

    def _wanted(self, plan: Plan, drafts: bool) -> dict[Key, Stored]:
        wanted: dict[Key, Stored] = {("shared", name, 0): stored for name, stored in self.store.shared.items()}
        for index, entry in enumerate(self.entries):
            if held(entry, drafts):
                wanted |= {("substitute", name, index): stored for name, stored in entry.substitute.items()}
        return wanted | {("resident", "", number): self.stored[number] for number in sorted(plan.residents)}

    def drafts(self, dtype: torch.dtype) -> list[Callable[[Tensor], Tensor]]:
        """The substitute's linear map of each Linear, in the order of a pass."""
        return [
            self.device.draft_product(quantizer, tensors, entry.shape, dtype)
            for entry, quantizer, tensors in zip(self.entries, self.quantizers, self.substitutes, strict=True)
        ]

    def ring(self, capacity: int) -> Ring | None:
        """The stream of all parts that are not resident; None when there is nothing to stream."""
        streamed = [part.number for part in self.parts if part.number not in self.residents]
        if not streamed:
            return None

        def check(number: int, data: Tensor) -> None:
            self.store.check(self.stored[number], data[self.stored[number].lead :])

        route, extents = FixedRoute(streamed), [extent(self.store, stored) for stored in self.stored]
        return self.device.ring(Streaming(extents, route, self.settings, check, self.host_bytes), capacity)

    def share(self, module: nn.Module, dtype: torch.dtype) -> None:
        """Norms and biases: one tensor for both views."""
        share(module, self.shared, dtype)
        for buffer in module.buffers():
            buffer.data = buffer.to(self.device.where)

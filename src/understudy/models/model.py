"""A stock model bound to a Store under a Plan: its target view, its draft view, its cache, and the stream between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..cache import Cache
from ..codecs import codec
from ..plan.memory import MIB, Needs, Plan
from ..plan.pace import Pace
from ..quantizers import Tensors, quantizer
from ..tiers.disk import DiskTier
from ..tiers.ring import Ring
from ..weights.store import LinearEntry, Store, Stored
from . import structure
from .draft import Draft
from .embedding import EmbeddingRows
from .load import extent, read_all
from .paired import ATTENTION, Runner, pair
from .supply import PartRef, Supply
from .target import TILE, Target

EMBEDDING_ROOM = 8 * MIB
SCRATCH = 320  # cache slots past the context, for the nodes of a tree

Report = Callable[[str, float, float], None]


def head_shape(config: Any) -> tuple[int, int, int]:
    """Layers, kv heads and head size of the cache."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return config.num_hidden_layers, getattr(config, "num_key_value_heads", None) or heads, size


def cache_dtype(dtype: torch.dtype) -> torch.dtype:
    """float16 models keep float32 keys and values on the CPU (the same values; the attention kernel has no float16)."""
    return torch.float32 if dtype == torch.float16 else dtype


def needs(store: Store, config: Any, dtype: torch.dtype, *, drafts: bool) -> Needs:
    """What the plan has to place, read off the Store's index."""
    layers, kv_heads, size = head_shape(config)
    widest = max(sum(entry.shape) for entry in store.linears.values())
    return Needs(
        parts=tuple(part.stored.nbytes for entry in store.linears.values() for part in entry.parts),
        substitute=sum(
            s.nbytes for entry in store.linears.values() if _in_memory(entry, drafts) for s in entry.substitute.values()
        ),
        shared=sum(stored.nbytes for stored in store.shared.values()),
        kv_per_token=2 * layers * kv_heads * size * cache_dtype(dtype).itemsize,
        layers=layers,
        tile_activations=TILE * (8 * config.hidden_size + 3 * widest) * dtype.itemsize,
        logits=TILE * config.vocab_size * (dtype.itemsize + 12),
        embedding_cache=EMBEDDING_ROOM + TILE * config.hidden_size * dtype.itemsize,
    )


def _in_memory(entry: LinearEntry, drafts: bool) -> bool:
    """Is the substitute of this Linear held? To draft with, to decode with, or because it is the weight itself."""
    return drafts or entry.codec != "raw" or not entry.parts


class Model:
    """`target(nodes, wanted)` and `draft(nodes)` -> logits. `pace` holds the measured costs that decide the shape of drafts."""

    tile = TILE
    companion: Model | None = None  # a second model that drafts

    def __init__(
        self, store: Store, config: Any, plan: Plan, *, dtype: torch.dtype, drafts: bool, block: int, threads: int,
        throttle: float = 0.0, report: Report | None = None,
    ):  # fmt: skip
        self.store, self.config, self.plan, self.dtype = store, config, plan, dtype
        self.module = structure.skeleton(config, dtype, ATTENTION)
        self.runner, self.pace = Runner(), Pace()
        self.entries = [store.linears[spec.module] for spec in store.layout.linears]
        pair(self.module, [entry.module for entry in self.entries], self.runner)
        self._read(drafts, block, threads, report)
        layers, kv_heads, size = head_shape(config)
        self.cache = Cache(
            layers, kv_heads, size, plan.rows, -(-(plan.context + SCRATCH) // 64) * 64, cache_dtype(dtype)
        )
        self.ring = self._ring(block, threads, throttle)
        outputs = [entry.shape[0] for entry in self.entries]
        self.supply = Supply(self.parts, outputs, self._decode, self.residents, self.ring)
        embedding = self.module.get_input_embeddings()  # type: ignore[operator]
        table = store.embedding
        rows, width = table.shape
        self.embed = EmbeddingRows(
            embedding, store.file(table.file), table.offset, rows, width, table.dtype, EMBEDDING_ROOM
        )
        base = getattr(self.module, str(self.module.base_model_prefix))
        self.target = Target(self.module, base, self.runner, self.cache, self.embed, self.supply.multiply)
        self.draft = Draft(self.module, self.runner, self.cache, self.embed, self._substitutes() if drafts else ())

    def _read(self, drafts: bool, block: int, threads: int, report: Report | None) -> None:
        """Bring what the plan keeps: shared tensors, substitutes, resident residuals; and number the parts."""
        self.parts: list[PartRef] = []
        self.stored: list[Stored] = []
        for index, entry in enumerate(self.entries):
            for part in entry.parts:
                self.parts.append(PartRef(len(self.parts), index, part.first_block, part.blocks, part.stored.nbytes))
                self.stored.append(part.stored)
        wanted: dict[tuple[str, object, str], Stored] = {
            ("shared", name, ""): s for name, s in self.store.shared.items()
        }
        for index, entry in enumerate(self.entries):
            if _in_memory(entry, drafts):
                wanted |= {("substitute", index, name): s for name, s in entry.substitute.items()}
        wanted |= {("resident", number, ""): self.stored[number] for number in sorted(self.plan.residents)}
        progress = None if report is None else lambda done, total: report("loading", done, total)
        tensors = dict(
            zip(
                wanted,
                read_all(self.store, list(wanted.values()), block=block, threads=threads, progress=progress),
                strict=True,
            )
        )
        self.residents = {int(str(number)): t for (kind, number, _), t in tensors.items() if kind == "resident"}
        self.substitutes: list[dict[str, Tensor]] = [{} for _ in self.entries]
        for (kind, place, name), tensor in tensors.items():
            if kind == "substitute":
                self.substitutes[int(str(place))][name] = tensor
        self._share({str(name): t for (kind, name, _), t in tensors.items() if kind == "shared"})
        for index, entry in enumerate(self.entries):
            if not entry.parts:  # the substitute is the weight itself: one part, resident
                blocks = self.substitutes[index]["weight"]
                self.residents[len(self.parts)] = blocks
                self.parts.append(PartRef(len(self.parts), index, 0, blocks.shape[0], 0))

    def _share(self, tensors: dict[str, Tensor]) -> None:
        """Norms and biases: one tensor for both views, under the checkpoint's name with or without the base model's prefix."""
        prefix = f"{self.module.base_model_prefix}."
        embedding = self.module.get_input_embeddings()  # type: ignore[operator]
        for name, parameter in self.module.named_parameters():
            if parameter is embedding.weight:
                continue
            found = next(tensors[n] for n in (name, name.removeprefix(prefix), prefix + name) if n in tensors)
            parameter.data = found.to(self.dtype)
            parameter.requires_grad_(False)

    def _ring(self, block: int, threads: int, throttle: float) -> Ring | None:
        streamed = [part.number for part in self.parts if part.number not in self.residents]
        if not streamed:
            return None
        tier = DiskTier(
            [extent(self.store, stored) for stored in self.stored], block=block, threads=threads, throttle=throttle
        )
        return Ring(
            tier, streamed, self.plan.ring, on_ready=lambda index, data: self.store.check(self.stored[index], data)
        )

    def _decode(self, part: PartRef, data: Tensor) -> Tensor:
        entry = self.entries[part.linear]
        if not entry.parts:
            return data
        substitute: Tensors = {}
        if entry.codec != "raw":
            substitute = quantizer(entry.quantizer).cut(self.substitutes[part.linear], part.first_block, part.blocks)
        if data.dtype != torch.uint8:
            data = data.flatten().view(torch.uint8)
        return codec(entry.codec).decode(data, part.blocks, entry.shape[1], entry.dtype, substitute)

    def _substitutes(self) -> list[Callable[[Tensor], Tensor]]:
        made = []
        for entry, tensors in zip(self.entries, self.substitutes, strict=True):
            made.append(quantizer(entry.quantizer).linear(tensors, entry.shape, self.dtype))
        return made

    def filling(self) -> bool:
        """Is the link still busy filling the ring, so that drafting on costs nothing?"""
        return self.ring is not None and not self.ring.full

    def close(self) -> None:
        """Give back threads and files. Twice is once."""
        if self.companion is not None:
            self.companion.close()
        self.embed.close()
        if self.ring is not None:
            self.ring.close()

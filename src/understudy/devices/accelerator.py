"""A device with memory of its own: what a model asks of it beside what every torch tensor does."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from ..codecs import Codec
from ..errors import UsageError
from ..kernels.attention import AttentionSpec, attend_anywhere
from ..quantizers import Linear, Quantizer, Tensors
from ..quantizers.grouped import Grouped
from ..tiers.device import Device as Streams
from ..tiers.memory import arena
from ..tiers.pinned import PinnedTier
from ..tree import Nodes
from .graphs import Graphs

PROBE = 64 << 20
SLOWER = "drafts and attention on the GPU are slower"


class Accelerator:
    """`where`: torch's name for it. `streams`: how bytes get there. `note`: what a person should know; empty if all is well.

    `without_triton`: why the project's own kernels cannot be used, and plain torch is, as far as that can do it; empty: they can.
    `graphs`: what records work to do it again; None where there is none, or where attention (without Triton) asks the host for
    lengths."""

    def __init__(
        self, name: str, where: str, streams: Streams, *, without_triton: str = "", graphs: Graphs | None = None
    ):
        self.name, self.where, self.streams = name, where, streams
        self.triton, self.without_triton = not without_triton, without_triton
        self.graphs = graphs if self.triton else None
        self.note = f"{without_triton}: {SLOWER}" if without_triton else ""

    def memory(self) -> tuple[int, int]:
        """Bytes of its memory that are free now, and all of it."""
        free, total = torch.cuda.mem_get_info(self.where)
        return int(free), int(total)

    def forget(self) -> None:
        """Give back what is held for later use alone."""
        torch.cuda.empty_cache()

    def peak_bytes(self) -> int:
        """The most of its memory that was held at once."""
        return int(torch.cuda.max_memory_reserved(self.where))

    def link_bytes_per_second(self) -> float:
        """Measured, from pinned host memory (from any, where it cannot be pinned)."""
        source, into = arena(PROBE), self.arena(PROBE)
        refusal = self.streams.register(source)
        stream = self.streams.copy_stream()
        best = 0.0
        for _ in range(4):  # the first also touches the memory
            began = time.perf_counter()
            self.streams.copy(stream, source, into)
            self.streams.finish(stream)
            best = max(best, PROBE / (time.perf_counter() - began))
        if not refusal:
            self.streams.unregister(source)
        return best

    def finish(self) -> None:
        """Wait until all that was asked of it is done."""
        self.streams.finish(self.streams.current_stream())

    def arena(self, nbytes: int) -> Tensor:
        """uint8 [nbytes], of any content."""
        return torch.empty(nbytes, dtype=torch.uint8, device=self.where)

    def landing(self, nbytes: int) -> Tensor:
        """uint8 [nbytes] of host memory that `late` copies to and the device is given small things from."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def late(self, source: Tensor, into: Tensor) -> Any:
        """Copy to the host once all that was asked before is done. Does not block; the event that happens when it is there."""
        into.copy_(source, non_blocking=True)
        return self.streams.record(self.streams.current_stream())

    def tier(self, *given: Any, **options: Any) -> PinnedTier:
        """Host memory, and the disk behind it, as this device's slow tier."""
        return PinnedTier(*given, device=self.streams, **options)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, nodes: Nodes, spec: AttentionSpec) -> Tensor:
        """query [n, heads, d] of `nodes` (which lie here) over a layer's cache -> [n, heads, d]; no node sees another."""
        if self.triton:
            from ..kernels.gpu.attention import attend  # only now: it needs Triton

            return attend(query, keys, values, nodes, spec)
        return attend_anywhere(query, keys, values, nodes, spec)

    def product(self, maker: Quantizer, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype) -> Linear:
        """The draft's product with a substitute."""
        if self.triton and isinstance(maker, Grouped):
            from ..kernels.gpu.draft_product import GroupedProduct

            return GroupedProduct(tensors["codes"], tensors["scales"], shape[0])
        return maker.linear(tensors, shape, dtype)

    def refuse(self, codec: str) -> None:
        """UsageError if weights stored like this cannot be made whole here."""
        if codec == "delta" and not self.triton:
            why = f"need Triton on {self.name}, and {self.without_triton}"
            raise UsageError(f"Weights stored as delta {why}: mend that, or use --codec raw.")

    def decode(
        self,
        decoder: Codec,
        data: Tensor,
        count: int,
        columns: int,
        dtype: torch.dtype,
        substitute: Tensors,
        out: Tensor | None = None,
    ) -> Tensor:
        """The exact blocks [count, columns, 64] of a part whose bytes are here: in `out`, or a view of `data`."""
        if decoder.name != "delta":
            return decoder.decode(data, count, columns, dtype, substitute, out)
        from ..kernels.gpu.residual import decode

        assert out is not None
        return decode(data, substitute["codes"], substitute["scales"], out)

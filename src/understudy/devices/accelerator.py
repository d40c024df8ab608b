"""A device with memory of its own, with host memory behind it: what all such devices do, given their streams of work."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..codecs import Codec, Encoded
from ..errors import UsageError, first_line
from ..kernels.attention import AttentionSpec, attend_anywhere
from ..kernels.blocks import BlockKernels
from ..kernels.chosen_keys import choose_anywhere
from ..kernels.expert_kernels import ExpertKernels, ExpertLinear
from ..kernels.state_form import HeadRows
from ..plan.demand import RUNTIME_CUDA
from ..plan.machine import Machine
from ..plan.placement import Plan
from ..plan.sizes import format_size, parse_size
from ..quantizers import Linear, Quantizer, Tensors
from ..quantizers.exact import Identity
from ..tiers import Streaming
from ..tiers.memory import arena
from ..tiers.ring import Ring, open_ring
from ..tiers.streams import Streams
from ..tree import Nodes
from . import DraftAttention, ExactProduct, OpenLevelKernels, RowProduct, SharedWork, SpilledAttention, TokenChooser
from .graphs import Graphs
from .host_memory import host_room
from .recurrent_work import RecurrentWork
from .trials import Trials, experts_off_torch, off_torch

# bytes that are copied to measure the link
PROBE = 64 << 20
# of the free memory, when nothing was asked for
SHARE = 0.95
SLOWER = "drafts and attention on the GPU are slower"


class Accelerator(RecurrentWork):
    """A device that torch calls `where`; `streams` are how bytes get there and work is ordered.

    `without_triton`: why the project's own kernels cannot be used, so that plain torch does their work as far as it can;
    empty: they can. `graphs` is used only with them, since attention without Triton asks the host for lengths."""

    runtime_bytes = RUNTIME_CUDA
    choose = staticmethod(choose_anywhere)
    own_memory = True
    drafts_see_text = False
    nodes_are_free = True

    def __init__(
        self, name: str, where: str, streams: Streams, *, without_triton: str = "", graphs: Graphs | None = None
    ) -> None:
        self.name = name
        self.where = where
        self.streams = streams
        self.triton = self.attends_over_states = not without_triton
        self.without_triton = without_triton
        self.graphs = graphs if self.triton else None
        self.note = f"{without_triton}: {SLOWER}" if without_triton else ""
        self._trials = Trials()
        # The stream by which tensors go to other devices.
        self._sending: Any = None

    def at_work(self) -> AbstractContextManager[object]:
        """Nothing to do: one that is alone is every thread's already."""
        return nullcontext()

    def memory(self) -> tuple[int, int]:
        """Bytes of its memory that are free now, and all of it."""
        free, total = torch.cuda.mem_get_info(self.where)
        return int(free), int(total)

    def budget(self, asked: str | int | None, machine: Machine) -> int:
        free, _ = self.memory()
        if asked is None:
            return int(free * SHARE)
        wanted = parse_size(asked)
        if wanted > free:
            raise UsageError(
                f"--memory {format_size(wanted)} is more than the {format_size(free)} that are free on {self.name}."
            )
        return wanted

    def forget(self) -> None:
        torch.cuda.empty_cache()

    def peak_bytes(self) -> int:
        return int(torch.cuda.max_memory_reserved(self.where))

    def arena(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self.where)

    def landing(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def incoming(self, place: Tensor) -> Tensor:
        return arena(place.numel())

    def link_bytes_per_second(self, disk: float) -> float:
        """Measured, from pinned host memory (from any, where it cannot be pinned)."""
        source, into = arena(PROBE), self.arena(PROBE)
        refusal = self.streams.register(source)
        stream = self.streams.copy_stream()
        best = 0.0  # of four: the first also touches the memory
        for _ in range(4):
            began = time.perf_counter()
            self.streams.copy(stream, source, into)
            self.streams.finish(stream)
            best = max(best, PROBE / (time.perf_counter() - began))
        if not refusal:
            self.streams.unregister(source)
        return best

    def memory_bytes_per_second(self, machine: Machine) -> float:
        """Not measured."""
        return 0.0

    def behind(self, plan: Plan, host_memory: str | int | None, machine: Machine, disk: float) -> Plan:
        """The link of `plan` is that from host memory; what the host does not hold comes over the `disk` first."""
        room = host_room(host_memory, machine.memory_limit)
        link = plan.link_bytes_per_second
        late = plan.streamed_bytes - min(room, plan.streamed_bytes)
        seconds = max(plan.streamed_bytes / link if link else 0.0, late / disk if disk else 0.0)
        notes = []
        if plan.streamed_bytes:
            notes.append(f"host memory holds {format_size(plan.streamed_bytes - late)} of that")
        if late:
            notes.append(f"{format_size(late)} come from disk on every pass: a larger --host-memory would be faster")
        placed = replace(
            plan,
            device=self.name,
            host_bytes=room,
            link_bytes_per_second=plan.streamed_bytes / seconds if seconds else link,
        )
        return placed.noted(*notes, self.note)

    def ring(self, streaming: Streaming, capacity: int) -> Ring:
        """Host memory in front of the disk. The tier checks each part where it comes from disk, before it is sent here."""
        return open_ring("pinned", streaming, capacity, allocate=self.arena, streams=self.streams)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, nodes: Nodes, spec: AttentionSpec) -> Tensor:
        if self.triton:
            # only now: it needs Triton
            from ..kernels.gpu.attention import attend

            return attend(query, keys, values, nodes, spec)
        return attend_anywhere(query, keys, values, nodes, spec)

    def head_product(self, weights: Tensor) -> HeadRows:
        # only now: it needs Triton
        from ..kernels.gpu.head_products import TritonHeads

        return TritonHeads(weights)

    def spilled_attention(self) -> SpilledAttention | None:
        return None

    def draft_attention(self, nodes: Nodes) -> DraftAttention:
        """The target's own: it looks at nothing but what lies here, so that a level can be recorded."""

        def attention(query: Tensor, keys: Tensor, values: Tensor, spec: AttentionSpec) -> Tensor:
            return self.attend(query, keys, values, nodes, spec)

        return attention

    def draft_product(self, quantizer: Quantizer, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype) -> Linear:
        if self.triton and quantizer.grouped:
            # only now: it needs Triton
            from ..kernels.gpu.draft_product import GroupedProduct

            product = GroupedProduct(tensors["codes"], tensors["scales"], shape[0])
            if self._sound(f"products of {quantizer.name}", dtype, partial(off_torch, product, quantizer, tensors, shape, dtype)):
                return product
        return (quantizer.by_torch if isinstance(quantizer, Identity) else quantizer.linear)(tensors, shape, dtype)

    def expert_kernels(self) -> ExpertKernels | None:
        if not self.triton:
            return None
        # only now: it needs Triton
        from ..kernels.gpu.expert_rows import TritonExperts

        return TritonExperts()

    def draft_experts(
        self, quantizer: Quantizer, tensors: Tensors, shape: tuple[int, int], experts: int, dtype: torch.dtype
    ) -> ExpertLinear | None:
        if not self.triton:
            return None
        # only now: it needs Triton
        from ..kernels.gpu.expert_product import GroupedExperts, WholeExperts

        if not quantizer.grouped:
            return WholeExperts(tensors["weight"], experts) if quantizer.name == "exact" else None
        product = GroupedExperts(tensors["codes"], tensors["scales"], experts)
        trial = partial(experts_off_torch, product, quantizer, tensors, shape, experts, dtype)
        return product if self._sound(f"products of experts' {quantizer.name}", dtype, trial) else None

    def _sound(self, products: str, dtype: torch.dtype, off: Callable[[], float]) -> bool:
        """Whether our products of this kind are near torch's; a note and a warning say where they are not."""
        wrong = self._trials.wrong(f"{products} in {dtype}".replace("torch.", ""), off)
        if wrong and wrong not in self.note:
            self.note = "; ".join(filter(None, [self.note, f"{wrong} on {self.name}: {SLOWER}"]))
            warnings.warn(self.note, RuntimeWarning, stacklevel=2)
        return not wrong

    def search_kernels(self) -> OpenLevelKernels | None:
        if not self.triton:
            return None
        # only now: it needs Triton
        from ..kernels.gpu.search import SearchKernels

        return SearchKernels

    def block_kernels(self) -> BlockKernels | None:
        if not self.triton:
            return None
        # only now: it needs Triton
        from ..kernels.gpu.blocks import TritonBlocks

        return TritonBlocks(self.where)

    def exact_product(self, dtype: torch.dtype, columns: int, rows: torch.dtype) -> ExactProduct | None:
        return None

    def row_product(self) -> RowProduct | None:
        if not self.triton:
            return None
        # only now: it needs Triton
        from ..kernels.gpu.exact_product import multiply_rows

        return multiply_rows

    def token_chooser(self) -> TokenChooser | None:
        if not self.triton:
            return None
        # only now: it needs Triton
        from ..kernels.gpu.token_choice import chosen_tokens

        return chosen_tokens

    def refusal(self, codec: Codec) -> str:
        if self.triton or not codec.needs_triton:
            return ""
        why = f"need Triton on {self.name}, and {self.without_triton}"
        return f"Weights stored as {codec.name} {why}: mend that, or use --codec raw."

    def decode(self, codec: Codec, part: Encoded, out: Tensor | None = None) -> Tensor:
        return codec.decode_on_device(part, out)

    def seconds_a_weight(self, codec: Codec, quantizer: str, dtype: torch.dtype) -> float:
        """Less than any link takes to bring it."""
        return 0.0

    def sharing(self, work: SharedWork, nodes: int) -> AbstractContextManager[None]:
        return nullcontext()

    def sent(self, sources: Sequence[Tensor], where: str) -> list[Tensor]:
        made = [torch.empty(source.shape, dtype=source.dtype, device=where) for source in sources]
        with self.at_work():
            stream = self._sending = self._sending or self.streams.copy_stream()
            for source, into in zip(sources, made, strict=True):
                self.streams.copy(stream, source, into)
            self.streams.finish(stream)
        return made

    def finish(self) -> None:
        self.streams.finish(self.streams.current_stream())

    def mark(self) -> Any:
        return self.streams.record(self.streams.current_stream())

    def late(self, source: Tensor, into: Tensor) -> Any:
        into.copy_(source, non_blocking=True)
        return self.mark()

    def wait_for(self, event: Any) -> None:
        self.streams.block_until(event)

    def seconds_between(self, first: Any, last: Any) -> float:
        return self.streams.seconds_between(first, last)

    def out_of_memory(self, error: BaseException) -> str:
        return ". ".join(first_line(error).split(". ")[:2]) if isinstance(error, torch.OutOfMemoryError) else ""

    def lost(self, error: BaseException) -> bool:
        return isinstance(error, RuntimeError) and "CUDA" in str(error) and not self.out_of_memory(error)

    def close(self) -> None:
        """It has no threads of its own."""

"""The processor: its memory is the process's own, and what it is asked for is done when the call returns."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import startup
from ..codecs import Codec, Encoded
from ..errors import UsageError, first_line
from ..kernels import exact_product, spilled_attention, team
from ..kernels.attention import AttentionSpec, Chosen, attend
from ..kernels.blocks import BlockKernels, ProcessorBlocks
from ..kernels.chosen_keys import IndexQuery, choose
from ..kernels.convolution_cpu import convolve
from ..kernels.draft_attention import LevelAttention
from ..kernels.expert_kernels import ExpertKernels, ExpertLinear
from ..kernels.head_products import HeadProduct
from ..kernels.recurrence import RuleStep
from ..kernels.recurrence_cpu import fold, recur
from ..plan.demand import EXPECTED_GROWTH, MIB, REST, RUNTIME
from ..plan.machine import Machine, cores, peak_memory_bytes, resident_bytes
from ..plan.placement import Plan
from ..plan.sizes import parse_size
from ..quantizers import Linear, Quantizer, Tensors
from ..recurrent import RecurrentShape, RecurrentState
from ..spilled import SpilledState
from ..tiers import Streaming
from ..tiers.memory import arena
from ..tiers.numa import processors_by_node, running_on
from ..tiers.ring import Ring, open_ring
from ..tree import Nodes
from . import DraftAttention, ExactProduct, OpenLevelKernels, RowProduct, SharedWork, SpilledAttention, TokenChooser
from .codec_speed import seconds_a_weight
from .graphs import Graphs
from .thread_choice import ThreadChoice, Threads, choices

# Bytes to which a process's own memory is rounded up: two that hold the same differ by less.
STEP = 8 * MIB
# of the memory this process could hold, when nothing was asked for
SHARE = 0.9


def _runtime_bytes() -> int:
    """What this process will hold beside a model. A command's own process is taken as it is, with all that it imports by now; in a
    program of somebody else's nobody knows what belongs to the model."""
    if not startup.owned():
        return RUNTIME
    # In whole steps: what one process plans should be the plan of the next one too.
    here = -(-resident_bytes() // STEP) * STEP
    return min(here + EXPECTED_GROWTH + REST, RUNTIME)


def _node(number: int) -> frozenset[int]:
    """The processors of NUMA node `number`. UsageError where there is no such node."""
    nodes = processors_by_node()
    if number not in nodes:
        there = ", ".join(f"cpu:{node}" for node in sorted(nodes))
        raise UsageError(f"cpu:{number} is not there: this process may run on {there} (NUMA nodes, which sockets are as a rule).")
    return nodes[number]


class _Pinned(threading.local):
    """Where the calling thread was at work last, if that was a NUMA node: the threads that share its kernels run there."""

    cpus: frozenset[int] = frozenset()


_pinned = _Pinned()


class Processor:
    """The processor and the memory of this process; with a `number`, the processors of that NUMA node. `threads` share the heads of
    attention; by default as many as torch has.

    torch gets no more threads than processors that this process may keep busy: where a quota allows half of them, the others would
    use it up early, and those that work would stand still with them."""

    name: str = "cpu"
    where = "cpu"
    note = ""
    own_memory = False
    attends_over_states = True
    head_product = staticmethod(HeadProduct)
    drafts_see_text = True
    nodes_are_free = False
    graphs: Graphs | None = None

    def __init__(self, threads: int = 0, *, number: int | None = None) -> None:
        if torch.get_num_threads() > cores():
            torch.set_num_threads(cores())
        # Of a node: the processors that its threads run on. Empty: wherever the system lets them.
        self.cpus: frozenset[int] = frozenset()
        if number is not None:
            self.name = f"cpu:{number}"
            self.cpus = _node(number)
        self.threads = threads or torch.get_num_threads()
        options = choices(self.threads)
        # Torch's own operations have the same threads in all passes, since their bits might depend on them: where a thread's share
        # begins, and where it ends in less than a vector. Two threads have half of a wide tile each, which is whole vectors.
        alone = [option for option in options if option.stock == 1]
        every = [Threads(self.threads, self.threads)]
        halves = [Threads(self.threads, 2)] if self.threads > 1 else []
        drafts = dict.fromkeys(("level", "head", "head logits"), options)
        self._shared = ThreadChoice({**drafts, "pass": alone, "prompt": [*halves, *alone], "stock pass": every})
        self.runtime_bytes = _runtime_bytes()
        self._pool: ThreadPoolExecutor | None = None

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Of a node: the thread, and those that it starts, run there, so what they touch first lies there. A thread that was at
        another node starts them anew."""
        with running_on(self.cpus, within=self.cpus):
            if self.cpus and torch.get_num_threads() > len(self.cpus):
                torch.set_num_threads(len(self.cpus))
            if self.cpus and _pinned.cpus not in (frozenset(), self.cpus):
                team.disband()
            _pinned.cpus = self.cpus or _pinned.cpus
            yield

    def budget(self, asked: str | int | None, machine: Machine) -> int:
        return int(machine.memory_limit * SHARE) if asked is None else parse_size(asked)

    def peak_bytes(self) -> int:
        return peak_memory_bytes()

    def forget(self) -> None:
        """Nothing is held for later: what is dropped is given back at once."""

    def arena(self, nbytes: int) -> Tensor:
        return arena(nbytes)

    def landing(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    def incoming(self, place: Tensor) -> Tensor:
        return place

    def link_bytes_per_second(self, disk: float) -> float:
        return disk

    def memory_bytes_per_second(self, machine: Machine) -> float:
        return machine.memory_bandwidth or 0.0

    def behind(self, plan: Plan, host_memory: str | int | None, machine: Machine, disk: float) -> Plan:
        return plan

    def ring(self, streaming: Streaming, capacity: int) -> Ring:
        return open_ring("disk", streaming, capacity)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, nodes: Nodes, spec: AttentionSpec) -> Tensor:
        pool, threads = self._attending()
        return attend(query, keys, values, nodes, spec, pool=pool, threads=threads)

    def choose(self, asked: IndexQuery, keys: Tensor, nodes: Nodes) -> Chosen:
        pool, threads = self._attending()
        return choose(asked, keys, nodes, pool=pool, threads=threads)

    def spilled_attention(self) -> SpilledAttention | None:
        def attend(query: Tensor, state: SpilledState, nodes: Nodes, spec: AttentionSpec) -> Tensor:
            pool, threads = self._attending()
            return spilled_attention.attend(query, state, nodes, spec, pool=pool, threads=threads)

        return attend

    def _attending(self) -> tuple[ThreadPoolExecutor | None, int]:
        """Threads that may share attention (None: there is one), and how many of them do now."""
        if self._pool is None and self.threads > 1:
            self._pool = ThreadPoolExecutor(self.threads, "attention")
        return self._pool, min(self.threads, team.threads())

    def draft_attention(self, nodes: Nodes) -> DraftAttention:
        return LevelAttention(nodes)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, state: RecurrentState, nodes: Nodes) -> Tensor:
        return convolve(x, weight, bias, state, nodes)

    def recur(self, step: RuleStep, state: RecurrentState, nodes: Nodes, together: bool) -> Tensor:
        return recur(step, state, nodes)

    def walks(self, shape: RecurrentShape) -> bool:
        return False

    def fold(self, state: RecurrentState, row: int, number: int) -> None:
        fold(state, row, number)

    def draft_product(self, quantizer: Quantizer, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype) -> Linear:
        return quantizer.linear(tensors, shape, dtype)

    def expert_kernels(self) -> ExpertKernels | None:
        return None

    def draft_experts(
        self, quantizer: Quantizer, tensors: Tensors, shape: tuple[int, int], experts: int, dtype: torch.dtype
    ) -> ExpertLinear | None:
        return None

    def search_kernels(self) -> OpenLevelKernels | None:
        return None

    def block_kernels(self) -> BlockKernels | None:
        return ProcessorBlocks()

    def exact_product(self, dtype: torch.dtype, columns: int, rows: torch.dtype) -> ExactProduct | None:
        return partial(exact_product.BlockProduct, rows=rows) if exact_product.applies(dtype, columns, rows) else None

    def row_product(self) -> RowProduct | None:
        return None

    def token_chooser(self) -> TokenChooser | None:
        return None

    def refusal(self, codec: Codec) -> str:
        return ""

    def decode(self, codec: Codec, part: Encoded, out: Tensor | None = None) -> Tensor:
        assert part.places is None, "a processor decodes one part at a time"
        return codec.decode(part, out)

    def seconds_a_weight(self, codec: Codec, quantizer: str, dtype: torch.dtype) -> float:
        """Measured, once for each codec, quantiser and type."""
        return seconds_a_weight(codec.name, quantizer, dtype)

    def sharing(self, work: SharedWork, nodes: int) -> AbstractContextManager[None]:
        return self._shared.timed(work, nodes)

    def sent(self, sources: Sequence[Tensor], where: str) -> list[Tensor]:
        return [source.to(where) for source in sources]

    def finish(self) -> None:
        """All is done already."""

    def mark(self) -> Any:
        return time.perf_counter()

    def late(self, source: Tensor, into: Tensor) -> Any:
        into.copy_(source)
        return self.mark()

    def wait_for(self, event: Any) -> None:
        """It has happened already."""

    def seconds_between(self, first: Any, last: Any) -> float:
        return float(last - first)

    def out_of_memory(self, error: BaseException) -> str:
        # torch's allocator for the processor raises a plain RuntimeError
        allocator = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
        known = allocator or isinstance(error, MemoryError | torch.OutOfMemoryError)
        return first_line(error) if known else ""

    def lost(self, error: BaseException) -> bool:
        return False

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

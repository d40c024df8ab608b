"""Compiling what a first run needs side by side, in processes of a command's own, before it is needed.

numba compiles one kernel after another on one processor, for a minute or two in all. These processes keep what they compile where
every process looks for it, so the command then reads it. What they do not get done, it compiles itself, as it always could. They
run beside the proof of the model's kind, for which the command compiles a kernel for float32; a refused model ends them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import startup
from ..codecs import Encoded, codec
from ..devices.processor import Processor
from ..kernels import (
    attention_amx,
    attention_cpu,
    choosing,
    draft_layer,
    draft_product,
    exact_product,
    fitting,
    float_product,
    likeliest,
    residual,
)
from ..kernels.attention import AttentionSpec
from ..kernels.compiled import on_disk
from ..kernels.draft_chain import lead
from ..kernels.exact_operand import Operand
from ..kernels.head_form import HeadForm
from ..kernels.pack import block
from ..layer_states import FullState, LayerShape
from ..plan.machine import cores, spare_bytes
from ..quantizers import quantizer
from ..quantizers.inputs import Inputs
from ..tree import Nodes, TokenTree
from .stock.shape import cache_dtype

# What a process that compiles holds, at most.
EACH = 700 << 20
# Seconds of work from which on processes are worth their own start, which takes some two.
WORTH = 10
# How often it is looked whether they are done, in seconds.
PAUSE = 0.05
SIZE = 64
WHAT = "Compiling kernels for this processor, once"
# What such a process runs: as a command starts, so that imports take the least time.
PROGRAM = """
import sys
from understudy import startup
startup.own()
with startup.lean():
    from understudy.models import compile_ahead
compile_ahead.use(sys.argv[1], sys.argv[2:])
"""


def attend(processor: Processor, layer: LayerShape, dtype: torch.dtype) -> None:
    """Attend with one node of `layer`."""
    state = FullState(layer, 1, 64, cache_dtype(dtype), processor.where)
    query = torch.zeros(1, layer.kv_heads, layer.key_size, dtype=dtype)
    nodes = Nodes.of(TokenTree.chain([0]), 0, 0)
    processor.attend(query, state.keys, state.values, nodes, AttentionSpec(scaling=1.0))


def attend_drafted(layer: LayerShape, dtype: torch.dtype) -> None:
    """Attend with one drafted node of `layer`."""
    state = FullState(layer, 1, 64, cache_dtype(dtype))
    made = torch.zeros(1, layer.kv_heads * (2 * layer.key_size + layer.value_size), dtype=dtype)
    turns = torch.zeros(2, 1, layer.key_size, dtype=dtype)
    form = HeadForm(AttentionSpec(scaling=1.0))
    draft_layer.attend(made, (turns[0], turns[1]), state, Nodes.of(TokenTree.chain([0]), 0, 0), form)


def choose() -> None:
    """Ask for what a tree search asks for, and for what finds the tokens of sampled rows."""
    one = np.ones(1)
    choosing.chances([0.0], one, one, 1.0, 1.0)
    choosing.match(np.zeros(1, dtype=np.int64), [0], 1, 1)
    likeliest.likeliest(torch.zeros(1, 8), torch.zeros(1, dtype=torch.int64), 1)


def _attend(dtype: torch.dtype) -> None:
    # one thread: attention is not shared out for so little
    attend(Processor(threads=1), LayerShape(1, SIZE, SIZE), dtype)


def _attend_drafted(dtype: torch.dtype) -> None:
    attend_drafted(LayerShape(1, SIZE, SIZE), dtype)
    lead()


def _weight(dtype: torch.dtype) -> torch.Tensor:
    return (torch.arange(SIZE * SIZE, dtype=torch.float32).view(SIZE, SIZE) % 61 / 64 - 0.5).to(dtype)


def _quantise(dtype: torch.dtype) -> None:
    inputs = Inputs(torch.ones(SIZE), torch.ones(SIZE, 2))
    for name in ("int4", "int8"):
        quantizer(name).quantize(_weight(dtype), inputs)


def _encode(dtype: torch.dtype) -> None:
    # What computes in float32 has float16 weights, or none that are encoded so.
    weight = _weight(torch.bfloat16 if dtype == torch.bfloat16 else torch.float16)
    blocks, substitute = block(weight), quantizer("int4").quantize(weight)
    data = codec("delta").encode(blocks, substitute)
    codec("delta").decode(Encoded(data, blocks.shape[0], blocks.shape[1], weight.dtype, substitute))


def _multiply(dtype: torch.dtype) -> None:
    product = exact_product.BlockProduct([(Operand.plain(block(_weight(dtype))), 0)], rows=dtype)
    product([_weight(dtype)[:1]], torch.empty(1, 1, SIZE, dtype=dtype))


def _draft(dtype: torch.dtype) -> None:
    made = quantizer("int8")
    made.linear(made.quantize(_weight(dtype)), (SIZE, SIZE), dtype)(_weight(dtype)[:1])


@dataclass(frozen=True)
class Use:
    """Something that uses kernels."""

    # Seconds that compiling them takes, about: how work is shared out.
    seconds: float
    run: Callable[[torch.dtype], None]
    # The kernel that is compiled last, or those of which one is.
    kernels: tuple[Callable[..., Any], ...]
    # Is it for preparing a model alone?
    prepares: bool = False
    # Is it for models alone that compute in this type?
    dtype: torch.dtype | None = None

    @property
    def missing(self) -> bool:
        """Whether its kernels are not on disk, and could be."""
        return all(on_disk(kernel) is False for kernel in self.kernels)


USES = {
    "attention": Use(10, _attend, (attention_cpu.attend, attention_amx.attend)),
    "products of drafts": Use(17, _draft, (draft_product._work,)),
    "attention of drafts": Use(12, _attend_drafted, (draft_layer._work,)),
    "exact products": Use(9, _multiply, (exact_product._work, exact_product._work_amx), dtype=torch.bfloat16),
    "exact products of float32": Use(9, _multiply, (float_product.work,), dtype=torch.float32),
    "choices": Use(9, lambda _: choose(), (likeliest._row,)),
    "copies": Use(17, _quantise, (fitting._fit,), prepares=True),
    "residuals": Use(8, _encode, (residual._encode,), prepares=True),
}


def use(dtype: str, names: Iterable[str]) -> None:
    """Use the kernels of `names`, for a model of the type `dtype`, as torch names it."""
    for name in names:
        with torch.inference_mode():
            USES[name].run(getattr(torch, dtype))


def shared_out(names: Sequence[str], count: int) -> list[list[str]]:
    """`names` of USES for `count` processes, so that all take about as long."""
    lists: list[list[str]] = [[] for _ in range(count)]
    for name in sorted(names, key=lambda name: -USES[name].seconds):
        min(lists, key=lambda own: sum(USES[each].seconds for each in own)).append(name)
    return [own for own in lists if own]


class Compiling:
    """Processes that compile."""

    def __init__(self, words: Sequence[Sequence[str]]) -> None:
        """Start PROGRAM with each of these `words`."""
        sources = str(Path(__file__).parents[2])
        path = os.pathsep.join([sources, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        nowhere = subprocess.DEVNULL
        self.processes: list[subprocess.Popen[bytes]] = []
        for each in words:
            command = [sys.executable, "-c", PROGRAM, *each]
            # Where the system lets nobody start another process, the command compiles.
            with suppress(OSError):
                self.processes.append(
                    subprocess.Popen(command, stdin=nowhere, stdout=nowhere, stderr=nowhere, env=environment)
                )

    def wait(self, report: Callable[[str, float, float], None] | None) -> None:
        """Wait until they have done their work; `report` is told that there is some."""
        if report is not None and self._running():
            report(WHAT, 0, 0)
        while self._running():
            time.sleep(PAUSE)

    def end(self) -> None:
        """End those that still run."""
        for process in self.processes:
            process.kill()
            process.wait()

    def _running(self) -> bool:
        return any(process.poll() is None for process in self.processes)


@contextmanager
def compiling(dtype: torch.dtype, prepares: bool) -> Iterator[Compiling]:
    """Compile what is not on disk for a model of the type `dtype`, in a command's process, where several processors are there for
    it and memory is. `prepares`: is it prepared, too? What compiles ends with the block, if not before."""
    started = Compiling(_shares(dtype, prepares))
    try:
        yield started
    finally:
        started.end()


def _shares(dtype: torch.dtype, prepares: bool) -> list[list[str]]:
    """The words of each process that is worth starting."""
    if not startup.owned():
        return []
    uses = {name: each for name, each in USES.items() if each.dtype in (None, dtype)}
    missing = [name for name, each in uses.items() if (prepares or not each.prepares) and each.missing]
    if sum(USES[name].seconds for name in missing) < WORTH:
        return []
    count = min(cores(), spare_bytes() // EACH, len(missing))
    if count < 2:
        return []
    return [[str(dtype).removeprefix("torch."), *names] for names in shared_out(missing, count)]

"""A level of the draft three ways on one machine, one after another: our fused blocks, stock blocks, and stock blocks that
`torch.compile` made one of, all with the same products and attention, each level recorded as usual.

A stock block is compiled once for all layers: what asks the pass for something, products and attention, are operators of our own,
which find the layer by who calls; a layer's norms are inputs. It takes long, so it has so many seconds; what fails, and why, is
said. Levels of the three ways must be alike."""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from types import FrameType, MappingProxyType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

Row = dict[str, Any]
WIDTH, LEVELS, LOGITS_APART = 8, 5, 0.1
SECONDS = 60.0
# Seconds until an alarm rings again whose error got lost: torch calls Python where no error can pass, and there it is dropped.
AGAIN = 1.0


class Caller:
    """The layer whose turn it is: its block, and its Linears by the numbers of the first layer's."""

    block: Any = None
    linears: Mapping[int, Any] = MappingProxyType({})


def compared(llm: Any, seconds: float = SECONDS, backend: str = "inductor") -> Row:
    """Milliseconds of a level of WIDTH nodes each way, and of compiling; None with a reason where that was not to be had."""
    from gpu_passes import fresh_search, often
    from understudy.models.fused_blocks.block_structure import usual_blocks

    search = fresh_search(llm)
    width, times = min(WIDTH, search.widest), often(llm, LEVELS)
    blocks = [block for block in usual_blocks(llm.model.draft.model) if "forward" in vars(block)]
    found: Row = {"width": width, "fused_ms": None, "stock_ms": None, "compiled_ms": None}
    if not blocks:
        return found | {"why": "no block is fused"}
    fused = logits(llm)
    found["fused_ms"] = level(search, width, times)
    try:
        with stock(blocks):
            found["stock_ms"] = level(search, width, times)
            # The time counts once all is in its place, and no more when it is put back: an alarm in between would leave it.
            with compiled(blocks, backend), within(seconds):
                began = time.perf_counter()
                off = (logits(llm) - fused).norm() / fused.norm()
                found |= {"compile_seconds": time.perf_counter() - began, "off": float(off), **graphs()}
                if not off <= LOGITS_APART:
                    return found | {"why": f"its logits are off by {float(off):.1e}"}
                found["compiled_ms"] = level(search, width, times)
    # What torch raises here is of any type, and its message long; the rest of a run goes on.
    except Exception as error:  # noqa: BLE001
        found["why"] = reason(error)
    finally:
        search.graphs.clear()
    return found


def reason(error: BaseException) -> str:
    """Why it failed, in one line: that time was up, whatever torch made of it, or the error itself."""
    under: BaseException | None = error
    while under is not None and not isinstance(under, TimeoutError):
        under = under.__cause__ or under.__context__
    said = under or error
    words = str(said).strip().splitlines() or [""]
    return f"{type(said).__name__}: {words[0][:200]}"


@torch.inference_mode()
def logits(llm: Any) -> Tensor:
    """What a level of a few nodes below a text gives. Row 0 of the cache must be empty."""
    from understudy.models.draft import _compared

    return [llm.model.draft(nodes.to(llm.model.device.where)) for nodes in _compared(llm.model.vocabulary)][-1].float()


def level(search: Any, width: int, times: int) -> float:
    """Milliseconds: the median of levels, recorded anew."""
    search.graphs.clear()
    search.measure(width)
    return 1e3 * statistics.median(search.measure(width) for _ in range(times))


@contextmanager
def stock(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, blocks run as they came."""
    ours = [vars(block).pop("forward") for block in blocks]
    try:
        yield
    finally:
        for block, forward in zip(blocks, ours, strict=True):
            object.__setattr__(block, "forward", forward)


@contextmanager
def compiled(blocks: Sequence[nn.Module], backend: str) -> Iterator[None]:
    """Inside, each of `blocks` runs the first one, compiled, with its own norms and biases."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from understudy.models.streamed import StreamedLinear, attention_name

    first, names = blocks[0], [name for name, _ in blocks[0].named_parameters()]
    if any(type(block) is not type(first) or [name for name, _ in block.named_parameters()] != names for block in blocks):
        raise ValueError("the blocks are of several kinds")
    mine = [module for module in first.modules() if isinstance(module, StreamedLinear)]
    # what is traced: a block of its own, so that each layer's may be another function meanwhile
    template = deepcopy(first, {id(mine[0].current): mine[0].current})
    for module in template.modules():
        if isinstance(module, StreamedLinear):
            object.__setattr__(module, "forward", MethodType(traced_linear, module))

    def one(hidden: Tensor, cosines: Tensor, sines: Tensor, *given: Tensor) -> Any:
        named = {"position_embeddings": (cosines, sines), "attention_mask": None, "past_key_values": None}
        return torch.func.functional_call(template, dict(zip(names, given, strict=True)), (hidden,), named)

    run = torch.compile(one, backend=backend, dynamic=False)

    def taking_turns(block: nn.Module) -> Callable[..., Any]:
        theirs = [module for module in block.modules() if isinstance(module, StreamedLinear)]
        linears = {module.index: other for module, other in zip(mine, theirs, strict=True)}
        given = [parameter.data for _, parameter in block.named_parameters()]

        def forward(hidden: Tensor, *_: Any, **named: Any) -> Any:
            Caller.block, Caller.linears = block, linears
            return run(hidden, *named["position_embeddings"], *given)

        return forward

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    ALL_ATTENTION_FUNCTIONS[attention_name()] = traced_attention
    for block in blocks:
        object.__setattr__(block, "forward", taking_turns(block))
    try:
        yield
    finally:
        # What is registered for all is found again; set here, it would hide what is registered later.
        del ALL_ATTENTION_FUNCTIONS[attention_name()]
        for block in blocks:
            vars(block).pop("forward", None)
        torch._dynamo.reset()


def graphs() -> Row:
    """How many graphs a block became, and how often what came before one was broken off."""
    counters = torch._dynamo.utils.counters
    return {"graphs": counters["stats"]["unique_graphs"], "breaks": sum(counters["graph_break"].values())}


@torch.library.custom_op("understudy_compare::product", mutates_args=())
def product(x: Tensor, index: int, outputs: int) -> Tensor:
    """x [n, K] times the weight of the caller's Linear that has the place of number `index` in the first layer: [n, outputs]."""
    linear = Caller.linears[index]
    return linear.current.under_way.linear(linear.index, x).clone()


@product.register_fake
def _(x: Tensor, index: int, outputs: int) -> Tensor:
    return x.new_empty(x.shape[0], outputs)


@torch.library.custom_op("understudy_compare::attend", mutates_args=())
def attend(query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int, softcap: float) -> Tensor:
    """As `streamed.attention`, of the caller's layer."""
    from understudy.models.streamed import attention

    out, _ = attention(Caller.block.self_attn, query, key, value, None, scaling, window, softcap)
    return out.clone()


@attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int, softcap: float) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])


def traced_linear(self: Any, x: Tensor) -> Tensor:
    """In the place of `StreamedLinear.forward`."""
    y = product(x.reshape(-1, x.shape[-1]), self.index, self.outputs).view(*x.shape[:-1], self.outputs)
    return y if self.bias is None else y + self.bias


def traced_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, scaling: float | None = None,
    sliding_window: int | None = None, softcap: float | None = None, **others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """In the place of `streamed.attention`."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(query, key, value, scale, sliding_window or 0, softcap or 0.0), None


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the main thread after so many seconds."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"it took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

"""The arithmetic of this machine, measured once: products on weights that no cache holds, and rounds of the built-in model.

The built-in model is narrow, so its rounds tell what a layer takes beside its products."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from .codecs import Encoded, codec
from .devices.codec_speed import product_turns, turns
from .kernels import instructions
from .kernels.exact_operand import Operand
from .kernels.pack import block
from .llm import LLM, SamplingParams
from .plan.machine import Machine
from .plan.placement import Plan
from .plan.remembered import recall, remember
from .plan.rounds import Arithmetic
from .quantizers import Linear, quantizer
from .weights.sample_text import TEXT

FILE = "arithmetic.json"
# Outputs and columns of the weight that is measured, how many there are of 4 bits and exact, which together fit in no cache, and
# how often all of them multiply.
SAMPLE = 2048, 2048
COPIES, EXACT, TURNS = 40, 12, 15
# Nodes of the wider of two levels and of two passes, which tell what a node costs.
LEVEL_NODES, PASS_NODES = 5, 17
# The rounds of the built-in model that are measured: levels, and nodes of a level; the last fill two tiles of a pass.
LEVELS, WIDTHS = 6, (1, 4, 8)
# So many texts of so many tokens are written, after the beginning of a text, so that what attends has something to look at.
TEXTS, TOKENS, PLAIN_TOKENS = 3, 96, 12
TEMPERATURE = 0.6
PROMPT, CONTEXT = TEXT[:600], 512
COPY = "int4"


def measured(cache: Path, *, again: bool = False) -> Arithmetic:
    """The arithmetic of this machine with the threads that torch has: remembered in `cache`, or measured in some seconds."""
    key = f"{Machine.inspect().cpu}, {instructions.told()}, {torch.get_num_threads()} threads"
    known = recall(cache / FILE, lambda fields: Arithmetic(**fields))
    if again or key not in known:
        known[key] = measure()
        remember(cache / FILE, known)
    return known[key]


def measure() -> Arithmetic:
    """The arithmetic of this machine now."""
    torch.manual_seed(0)
    weight = torch.randn(SAMPLE).bfloat16()
    copy = quantizer(COPY)
    tensors = copy.quantize(weight)
    copies = [{name: tensor.clone() for name, tensor in tensors.items()} for _ in range(COPIES)]
    linears = [copy.linear(own, SAMPLE, torch.bfloat16) for own in copies]
    level_one, level_more = _level(linears, 1), _level(linears, LEVEL_NODES)
    copied = sum(tensor.nbytes for tensor in tensors.values())
    whole = block(weight)
    nbytes = whole.numel() * 2
    delta = codec("delta")
    data = delta.encode(whole, tensors)
    packed = [delta.operand(Encoded(data.clone(), len(whole), SAMPLE[1], weight.dtype, own)) for own in copies[:EXACT]]
    plain = [Operand.plain(whole.clone()) for _ in range(EXACT)]
    rebuilt_one, rebuilt_more = _pass(packed, 1), _pass(packed, PASS_NODES)
    plain_one = _pass(plain, 1)
    products = Arithmetic.of_bandwidth(nbytes / plain_one)
    products = replace(
        products,
        copy_rate=copied / level_one,
        copy_node_seconds=max(level_more - level_one, 0.0) / (LEVEL_NODES - 1) / copied,
        rebuilt_rate=nbytes / rebuilt_one,
        node_seconds=max(rebuilt_more - rebuilt_one, 0.0) / (PASS_NODES - 1) / nbytes,
    )
    return _beside(products)


def _beside(products: Arithmetic) -> Arithmetic:
    """`products` with what rounds of the built-in model and its head take beside them, each found once those before are known."""
    plain, streamed = _Rounds.of("none", "residual"), _Rounds.of("none", "none")
    narrow, wide, widest = (_Rounds.of(f"substitute:width={width},depth={LEVELS}", "residual") for width in WIDTHS)
    ordinary = _Rounds.of("substitute", "residual")
    layers = plain.plan.layers
    found = replace(products, round_rest=plain.rest)
    found = replace(found, pass_layer=_more(plain.busy, found.busy_seconds(plain.plan, 1)) / layers)
    found = replace(found, part_seconds=_more(streamed.busy, plain.busy) / streamed.plan.streamed_parts)
    slope = (wide.busy - narrow.busy) / (wide.nodes - narrow.nodes) - products.node_seconds * plain.plan.exact_bytes
    found = replace(found, pass_node=max(slope, 0.0) / layers)
    tiles = math.ceil(widest.nodes / widest.plan.tile) - 1
    found = replace(found, pass_tile=_more(widest.busy, found.busy_seconds(widest.plan, widest.nodes)) / tiles / layers)
    one, more = (_more(rounds.level, rounds.level_seconds(found)) / layers for rounds in (narrow, wide))
    found = replace(found, level_layer=one, level_node=_more(more, one) / (wide.level_nodes - narrow.level_nodes))
    found = replace(found, level_rest=_more(ordinary.level, ordinary.level_seconds(found)))
    head = _Rounds.of("eagle:demo", "residual")
    known = found.head_seconds(head.plan.head_level_bytes, head.level_nodes)
    return replace(found, head_level=_more(head.level, known))


def _more(whole: float, known: float) -> float:
    """What `whole` takes beyond what is `known` of it."""
    return max(whole - known, 0.0)


@dataclass(frozen=True)
class _Rounds:
    """Rounds of the built-in model, on average: nodes of a pass and of a level, and seconds."""

    plan: Plan
    nodes: float
    level_nodes: float
    level: float
    # A pass, but for waiting for the link.
    busy: float
    # What is neither drafting nor a pass.
    rest: float

    @classmethod
    def of(cls, method: str, resident: str) -> _Rounds:
        """Those of several texts, once one was generated."""
        with LLM(None, method=method, rows=1, resident=resident, context=CONTEXT) as llm:
            params = SamplingParams(temperature=TEMPERATURE, ignore_eos=True)
            params = replace(params, max_new_tokens=PLAIN_TOKENS if method == "none" else TOKENS)
            texts = [llm.generate(PROMPT, replace(params, seed=seed))[0].stats for seed in range(TEXTS + 1)][1:]
            rounds = sum(text.rounds for text in texts)
            levels = max(sum(text.levels for text in texts), 1)
            known = sum(text.draft_seconds + text.wait_seconds + text.compute_seconds for text in texts)
            return cls(
                plan=llm.plan,
                nodes=1 + sum(text.drafted for text in texts) / rounds,
                level_nodes=sum(text.level_nodes for text in texts) / levels,
                level=sum(text.draft_seconds for text in texts) / levels,
                busy=sum(text.compute_seconds for text in texts) / rounds,
                rest=max(sum(text.decode_seconds for text in texts) - known, 0.0) / rounds,
            )

    def level_seconds(self, arithmetic: Arithmetic) -> float:
        """What a level should take by what is known."""
        return arithmetic.level_seconds(self.plan, self.level_nodes)


def _level(linears: Sequence[Linear], nodes: int) -> float:
    """Seconds in which one of the copy's `linears` multiplies `nodes` rows."""
    x = torch.randn(nodes, SAMPLE[1]).bfloat16()
    return statistics.median(turns([partial(linear, x) for linear in linears], TURNS))


def _pass(operands: Sequence[Operand], nodes: int) -> float:
    """Seconds in which one of `operands` multiplies `nodes` rows."""
    return statistics.median(product_turns(operands, nodes, TURNS))

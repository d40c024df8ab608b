"""The arithmetic of this machine, measured once: products on weights that no cache holds, and rounds of the built-in model.

The built-in model is narrow, so its rounds tell what a layer takes beside its products."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from .codecs import Encoded, codec
from .kernels import instructions
from .kernels.exact_product import BlockProduct, Operand
from .kernels.pack import BLOCK, block
from .llm import LLM, SamplingParams
from .plan.machine import Machine
from .plan.remembered import recall, remember
from .plan.rounds import Arithmetic
from .quantizers import Linear, quantizer

FILE = "arithmetic.json"
# Outputs and columns of the weight that is measured, and how many there are: together they fit in no cache.
SAMPLE = 2048, 2048
COPIES = 12
# Nodes of the wider of two levels and of two passes, which tell what a node costs.
LEVEL_NODES, PASS_NODES = 5, 17
# The rounds of the built-in model that are measured: levels, and nodes of a level.
LEVELS, WIDTHS = 6, (1, 4)
# The least of so many texts of so many tokens counts.
TEXTS, TOKENS = 3, 48
PROMPT = "import os\nimport sys\n\n\ndef main(argv):\n    "
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
    packed = [delta.operand(Encoded(data.clone(), len(whole), SAMPLE[1], weight.dtype, own)) for own in copies]
    plain = [Operand.plain(whole.clone()) for _ in range(COPIES)]
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
    return replace(products, **_beside(products))


def _beside(products: Arithmetic) -> dict[str, float]:
    """What the built-in model's rounds take beside `products`, by the rounds of a narrow and of a wide tree."""
    narrow, wide = (_round(products, width) for width in WIDTHS)
    found: dict[str, float] = {}
    for what in ("level", "pass"):
        (first, taken), (last, most) = narrow[what], wide[what]
        node = max(most - taken, 0.0) / (last - first)
        # A level of one node, and a pass of none.
        least = 1 if what == "level" else 0
        found |= {f"{what}_node": node, f"{what}_layer": max(taken - (first - least) * node, 0.0)}
    return found | {"round_rest": narrow["rest"][1]}


def _round(products: Arithmetic, width: int) -> dict[str, tuple[float, float]]:
    """Of the built-in model's rounds with LEVELS levels of `width` nodes: the nodes of a level and of a pass, each with the seconds
    that a layer takes beside its `products`; and the nodes of a pass with the seconds of the rest of a round."""
    with LLM(None, method=f"substitute:width={width},depth={LEVELS}", rows=1, resident="residual", context=256) as llm:
        params = SamplingParams(temperature=0, max_new_tokens=TOKENS, ignore_eos=True)
        llm.generate(PROMPT, params)
        stats = min((llm.generate(PROMPT, params)[0].stats for _ in range(TEXTS)), key=lambda stats: stats.decode_seconds)
        plan = llm.plan
    levels = max(stats.levels_per_round * stats.rounds, 1)
    wide, nodes = stats.drafted / levels, 1 + stats.drafted / stats.rounds
    level = stats.draft_seconds / levels - products.level_seconds(plan.draft_level_bytes, plan.layers, wide)
    busy = stats.compute_seconds / stats.rounds
    busy -= plan.exact_bytes * (1 / products.rebuilt_rate + nodes * products.node_seconds)
    rest = stats.decode_seconds - stats.draft_seconds - stats.wait_seconds - stats.compute_seconds
    return {
        "level": (wide, max(level, 0.0) / plan.layers),
        "pass": (nodes, max(busy, 0.0) / plan.layers),
        "rest": (nodes, max(rest, 0.0) / stats.rounds),
    }


def _level(linears: Sequence[Linear], nodes: int) -> float:
    """Seconds in which one of the copy's `linears` multiplies `nodes` rows."""
    x = torch.randn(nodes, SAMPLE[1]).bfloat16()
    return _seconds([partial(linear, x) for linear in linears])


def _pass(operands: Sequence[Operand], nodes: int) -> float:
    """Seconds in which one of `operands` multiplies `nodes` rows."""
    x = torch.randn(nodes, SAMPLE[1]).bfloat16()
    out = torch.empty(nodes, SAMPLE[0] // BLOCK, BLOCK, dtype=torch.bfloat16)
    products = [BlockProduct([(operand, 0)]) for operand in operands]
    return _seconds([partial(product, [x], out) for product in products])


def _seconds(actions: Sequence[Callable[[], object]], turns: int = 5) -> float:
    """Seconds of one of `actions`, on average over the median of several turns through all of them."""
    for action in actions:
        action()
    taken = []
    for _ in range(turns):
        start = time.perf_counter()
        for action in actions:
            action()
        taken.append((time.perf_counter() - start) / len(actions))
    return sorted(taken)[turns // 2]

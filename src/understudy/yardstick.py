"""The arithmetic of this machine, measured once: products on weights that no cache holds, and rounds of the built-in model.

The built-in model is narrow, so its rounds tell what a layer takes beside its products."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
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
from .quantizers import quantizer

FILE = "arithmetic.json"
# Outputs and columns of the weight that is measured, and how many there are: together they fit in no cache.
SAMPLE = 2048, 2048
COPIES = 12
# Nodes of the wider of the two passes that tell what a node costs.
NODES = 17
# The rounds of the built-in model that are measured: nodes of a level, and levels.
WIDTH, LEVELS = 2, 6
TOKENS = 48
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
    x = torch.randn(1, SAMPLE[1]).bfloat16()
    linears = [copy.linear(own, SAMPLE, torch.bfloat16) for own in copies]
    level = _seconds([partial(linear, x) for linear in linears])
    whole = block(weight)
    nbytes = whole.numel() * 2
    delta = codec("delta")
    data = delta.encode(whole, tensors)
    packed = [delta.operand(Encoded(data.clone(), len(whole), SAMPLE[1], weight.dtype, own)) for own in copies]
    plain = [Operand.plain(whole.clone()) for _ in range(COPIES)]
    rebuilt_one, rebuilt_more = _pass(packed, 1), _pass(packed, NODES)
    plain_one = _pass(plain, 1)
    rates = {
        "copy_rate": sum(tensor.nbytes for tensor in tensors.values()) / level,
        "rebuilt_rate": nbytes / rebuilt_one,
        "plain_rate": nbytes / plain_one,
        "node_seconds": max(rebuilt_more - rebuilt_one, 0.0) / (NODES - 1) / nbytes,
    }
    return Arithmetic(**rates, **_rounds(rates))


def _rounds(rates: dict[str, float]) -> dict[str, float]:
    """What the built-in model's rounds take beside products, which go by `rates`."""
    with LLM(None, method=f"substitute:width={WIDTH},depth={LEVELS}", rows=1, resident="residual", context=256) as llm:
        params = SamplingParams(temperature=0, max_new_tokens=TOKENS, ignore_eos=True)
        llm.generate(PROMPT, params)
        stats = llm.generate(PROMPT, params)[0].stats
        plan = llm.plan
    nodes = stats.drafted / stats.rounds
    level = stats.draft_seconds / stats.rounds / max(stats.levels_per_round, 1)
    busy = stats.compute_seconds / stats.rounds
    products = plan.exact_bytes * (1 / rates["rebuilt_rate"] + nodes * rates["node_seconds"])
    rest = stats.decode_seconds - stats.draft_seconds - stats.wait_seconds - stats.compute_seconds
    return {
        "level_layer": max(level - plan.draft_level_bytes / rates["copy_rate"], 0.0) / plan.layers,
        "pass_layer": max(busy - products, 0.0) / plan.layers,
        "round_rest": max(rest, 0.0) / stats.rounds,
    }


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

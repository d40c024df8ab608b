"""What a layer takes whose state forgets by channel, at the sizes of real models, on one thread of the processor.

    python benchmarks/channel_rule.py [WORD]     (KDA as in Kimi Linear, and Mamba as in Falcon Mamba, or one of them)

Tells the time of a prompt's token, of levels of a draft (1 and 8 nodes, 12 tokens after the last accepted one) and of a pass over
48 nodes; only the rule, without the products, the convolution and the norm around it."""

import sys
import time
from collections.abc import Callable

import torch

from understudy.devices.processor import Processor
from understudy.kernels.recurrence import RuleStep
from understudy.models.recurrent_layers.channel_rule import recur
from understudy.recurrent import RecurrentShape, RecurrentState, Room, tops
from understudy.tree import AcceptedPath, Nodes, TokenTree

SHAPES = {
    "KDA, 32 heads of 128 x 128": RecurrentShape(3 * 4096, 4, 32, 32, 128, 128, by_channel=True),
    "Mamba, 8192 channels x 16": RecurrentShape(8192, 4, 1, 8192, 16, 1, by_channel=True, rated=True),
}
# tokens of the prompt that is read in tiles, then of the trunk that drafts branch after
PROMPT, TILE, TRUNK = 128, 32, 12
PASS = 48


def drawn(shape: RecurrentShape, count: int) -> RuleStep:
    """What so many nodes bring."""
    key, query = (torch.nn.functional.normalize(torch.randn(count, shape.key_heads, shape.key_size), dim=-1) for _ in range(2))
    value = torch.randn(count, shape.value_heads, shape.value_size)
    if shape.rated:
        return RuleStep(query, key, value, torch.rand(count, shape.value_heads) * 0.1)
    decay = torch.exp(-0.1 * torch.rand(count, shape.value_heads, shape.key_size))
    return RuleStep(query, key, value, decay, torch.rand(count, shape.value_heads))


def tree(nodes: int) -> TokenTree:
    """A tree as drafts are: a trunk, and a way that leaves it at every third token."""
    parents = list(range(-1, nodes - 1))
    for node in range(5, nodes, 3):
        parents[node] = node - 4
    return TokenTree.of([0] * nodes, parents)


def fastest(work: Callable[[], object], times: int = 15) -> float:
    """Seconds of the fastest call: others may have the processor in between."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def measure(shape: RecurrentShape) -> list[tuple[str, float]]:
    device = Processor(threads=1)
    state = RecurrentState(shape, Room(1, 64, torch.bfloat16), device.fold)
    state.rates = -1 - torch.rand(shape.value_heads, shape.key_size) * 15

    def run(nodes: Nodes) -> None:
        step = steps[len(nodes)]
        for row, position in tops(nodes):
            state.advance(row, position)
        recur(device, step, state, nodes, False)

    steps = {count: drawn(shape, count) for count in (1, 8, TILE, PASS)}
    chain = Nodes.of(TokenTree.chain([0] * PROMPT), 0, 0)
    for at in range(0, PROMPT - TILE, TILE):
        run(chain[at : at + TILE])
    state.keep(0, 0, AcceptedPath(torch.arange(PROMPT - TILE)))
    found = [("a prompt's token", fastest(lambda: run(chain[-TILE:])) / TILE)]
    state.keep(0, PROMPT - TILE, AcceptedPath(torch.arange(TILE)))
    draft = Nodes.of(TokenTree.of([0] * (TRUNK + 8), [*range(-1, TRUNK - 1), *[TRUNK - 1] * 8]), 0, PROMPT)
    for node in range(TRUNK):
        run(draft[node : node + 1])
    found.append(("a level of 1 node, the last token's", fastest(lambda: run(draft[:1]))))
    found.append(("a level of 1 node, 12 tokens after it", fastest(lambda: run(draft[TRUNK + 1 : TRUNK + 2]))))
    found.append(("a level of 8 nodes, 12 tokens after it", fastest(lambda: run(draft[TRUNK:]))))
    whole = Nodes.of(tree(PASS), 0, PROMPT)
    found.append(("a pass of 48 nodes", fastest(lambda: run(whole))))
    return found


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name, shape in SHAPES.items():
        if " ".join(sys.argv[1:]) in name:
            for what, seconds in measure(shape):
                print(f"{name}: {what}: {1e3 * seconds:.3f} ms", flush=True)


if __name__ == "__main__":
    main()

"""How long the host takes to ask for a decoder layer, where nothing is recorded: a draft level and a pass in stages on devices that
compute nothing. What a GPU's launches take comes beside it.

    python benchmarks/asking.py            # --layers 16

Products, decoding and attention return at once; norms, rotations and sums are torch's own, on a few numbers."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))


def silent(patch: pytest.MonkeyPatch) -> None:
    """Let simulated devices compute nothing."""
    from tests.fake_device import FakeDevice

    def attend(device: Any, query: Any, keys: Any, values: Any, nodes: Any, spec: Any) -> Any:
        return query.new_empty(*query.shape[:2], values.shape[-1])

    def draft_product(device: Any, quantizer: Any, tensors: Any, shape: tuple[int, int], dtype: Any) -> Any:
        return lambda x: x.new_empty(x.shape[0], shape[0])

    patch.setattr(FakeDevice, "attend", attend)
    patch.setattr(FakeDevice, "draft_product", draft_product)
    patch.setattr(FakeDevice, "row_product", lambda device: lambda x, blocks, out: out.zero_())


def fastest(work: Callable[[], object], times: int = 30) -> float:
    """Processor seconds of the fastest of so many runs."""
    found = []
    for _ in range(times):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def main() -> None:
    from tests.several_devices import llm, simulated
    from tests.tiny import save
    from understudy.tree import Nodes, TokenTree

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=16)
    given = parser.parse_args()
    torch.set_num_threads(1)
    tree = TokenTree.of([0] * 9, [-1] + [0] * 8)
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        save(Path(place), "llama", torch.bfloat16, hidden_size=64, intermediate_size=128, num_hidden_layers=given.layers)
        silent(patch)
        simulated(patch)
        with llm(Path(place), "fake:0,fake:1", "stages", resident="auto", codec="raw") as loaded:
            model, nodes = loaded.model, Nodes.of(tree, 0, 0)
            assert model.target.whole, "a pass on a GPU is one forward"
            with torch.inference_mode(), model.guard():
                level = fastest(lambda: model.draft(nodes))
                whole = fastest(lambda: model.verify(nodes, torch.arange(9), lambda logits, first: logits.argmax(-1)))
    print("| | a decoder layer | a Linear |\n|---|---|---|")
    for name, seconds in (("draft level", level), ("pass", whole)):
        print(f"| {name} | {seconds / given.layers * 1e6:.0f} us | {seconds / given.layers / 7 * 1e6:.0f} us |")


if __name__ == "__main__":
    main()

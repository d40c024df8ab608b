"""The draft's products alone on a GPU: blocks of random weights, one launch after another in a CUDA graph, beside their bytes.

    python benchmarks/gpu_product.py --rows 1 8 16 64
    python benchmarks/gpu_product.py --set PAIRS_RESIDENT=12 STAGES=3 --set PAIRS_RESIDENT=8 --json products.json
    python benchmarks/gpu_product.py --fake --rows 2

Each `--set` is a variant: constants of `kernels/gpu/draft_product.py` with other values. Each launch's results are compared with
torch's product by the same weights (status 1 if one is wrong). For each number of rows: microseconds a block, and how many times
what its bytes take at the speed of a sum over memory. `--fake` runs the same, small, in Triton's interpreter, where no time means
anything."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# bytes that are summed to see what memory gives
SUMMED = 1 << 30
REPEATED, BEST_OF = 12, 3
GROUP = 64
# launches after a norm, and those whose results are added to something
NORMED, ADDED = ("qkv", "gate up"), ("o", "down")
# hidden size, inner size, blocks
USUAL, SMALL = (5120, 8960, 8), (256, 192, 1)


def weight(rows: int, columns: int, where: str) -> tuple[Tensor, Tensor, int]:
    """Codes, scales and rows of a random weight of 4 bits."""
    blocks = -(-rows // 64)
    codes = torch.randint(0, 256, (blocks, columns, 32), dtype=torch.uint8, device=where)
    scales = torch.rand(columns // GROUP, blocks * 64, 2, device=where) * 0.01
    scales[..., 1] = (scales[..., 1] - 0.005) * 0.1
    return codes, scales.bfloat16(), rows


class Block:
    """The four launches of a decoder block, by name."""

    def __init__(self, hidden: int, inside: int, norm: Any, where: str) -> None:
        from understudy.kernels.gpu.draft_product import GroupedProduct, JoinedGrouped

        small = hidden // 4
        shapes = {"qkv": [(hidden, hidden), (small, hidden), (small, hidden)], "o": [(hidden, hidden)]}
        shapes |= {"gate up": [(inside, hidden), (inside, hidden)], "down": [(hidden, inside)]}
        self.weights = {name: [weight(*shape, where) for shape in each] for name, each in shapes.items()}
        self.norm = norm
        self.launches = {
            name: JoinedGrouped([GroupedProduct(*one) for one in each], norm if name in NORMED else None, (), name == "gate up")
            for name, each in self.weights.items()
        }

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for each in self.weights.values() for one in each for tensor in one[:2])

    def run(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        added = given["o"]
        return {name: launch(given[name], added if name in ADDED else None) for name, launch in self.launches.items()}

    def off(self, given: dict[str, Tensor]) -> float:
        """The largest relative error of a launch against torch's products in float32."""
        return max(_error(found, self._wanted(name, given)) for name, found in self.run(given).items())

    def _wanted(self, name: str, given: dict[str, Tensor]) -> Tensor:
        from understudy.quantizers import quantizer

        maker, x = quantizer(f"int4:group={GROUP}"), given[name].float()
        if name in NORMED:
            x = x * torch.rsqrt(x.square().mean(1, keepdim=True) + self.norm.epsilon) * self.norm.weight
        found = [
            x @ maker.dequantize({"codes": codes, "scales": scales}, (rows, x.shape[1])).float().T
            for codes, scales, rows in self.weights[name]
        ]
        y = torch.nn.functional.silu(found[0]) * found[1] if name == "gate up" else torch.cat(found, 1)
        return y + given["o"].float() if name in ADDED else y


def _error(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted).norm() / wanted.norm())


def given_of(rows: int, hidden: int, inside: int, where: str) -> dict[str, Tensor]:
    x, wide = (torch.randn(rows, size, device=where).bfloat16() for size in (hidden, inside))
    return {"qkv": x, "o": x, "gate up": x, "down": wide}


def seconds(work: Callable[[], Any], fake: bool) -> float:
    """Of one run of `work`, recorded as a graph; where there is no GPU, just run."""
    if fake:
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun
    with torch.cuda.stream(torch.cuda.Stream()):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    graph.replay()
    times = []
    for _ in range(BEST_OF):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(REPEATED):
            graph.replay()
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last) / 1e3 / REPEATED)
    return min(times)


def bytes_per_second(fake: bool) -> float:
    """What a sum over memory reads."""
    if fake:
        return 1e9
    floats = torch.empty(SUMMED // 4, device="cuda")
    return SUMMED / min(seconds(floats.sum, False) for _ in range(2))


def variant(given: Sequence[str]) -> dict[str, int]:
    """NAME=VALUE, each a constant of `draft_product`."""
    from understudy.kernels.gpu import draft_product

    found = {}
    for one in given:
        name, _, value = one.partition("=")
        if not isinstance(getattr(draft_product, name, None), int) or not value.isdigit():
            raise SystemExit(f"gpu_product: --set {one}: a constant of kernels/gpu/draft_product.py and a whole number, NAME=VALUE")
        found[name] = int(value)
    return found


def measured(asked: argparse.Namespace, changes: dict[str, int], bandwidth: float) -> dict[str, Any]:
    from understudy.kernels.draft_product import Norm
    from understudy.kernels.gpu import draft_product

    where = "cpu" if asked.fake else "cuda"
    before = {name: getattr(draft_product, name) for name in changes}
    vars(draft_product).update(changes)
    draft_product.running.cache_clear()
    try:
        torch.manual_seed(0)
        norm = Norm(torch.rand(asked.hidden, device=where) + 0.5, 1e-5)
        blocks = [Block(asked.hidden, asked.inside, norm, where) for _ in range(asked.blocks)]
        bound = sum(block.nbytes for block in blocks) / bandwidth
        found: dict[str, Any] = {"changes": changes, "bytes": blocks[0].nbytes, "rows": {}}
        for rows in asked.rows:
            given = given_of(rows, asked.hidden, asked.inside, where)
            off = blocks[0].off(given)
            taken = seconds(lambda given=given: [block.run(given) for block in blocks], asked.fake)
            found["rows"][rows] = {"us": 1e6 * taken / len(blocks), "x bytes": taken / bound, "error": off}
            said = f"{1e6 * taken / len(blocks):.1f} us a block, {taken / bound:.2f} x its bytes, error {off:.1e}"
            print(f"{changes or 'as it is'}, {rows} rows: {said}", flush=True)
        return found
    finally:
        vars(draft_product).update(before)
        draft_product.running.cache_clear()


def main() -> int:
    parser = argparse.ArgumentParser(description="Times the draft's 4-bit products on a GPU.")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 16, 64])
    parser.add_argument("--hidden", type=int, help=f"multiple of 256 (default {USUAL[0]})")
    parser.add_argument("--inside", type=int, help=f"multiple of 64 (default {USUAL[1]})")
    parser.add_argument("--blocks", type=int, help=f"so many, so that no cache holds them (default {USUAL[2]})")
    parser.add_argument("--set", nargs="+", action="append", default=[], metavar="NAME=VALUE", dest="variants")
    parser.add_argument("--fake", action="store_true", help="in Triton's interpreter")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    for name, size in zip(("hidden", "inside", "blocks"), SMALL if asked.fake else USUAL, strict=True):
        if getattr(asked, name) is None:
            setattr(asked, name, size)
    sizes_fit = asked.hidden > 0 and asked.hidden % 256 == 0 and asked.inside > 0 and asked.inside % 64 == 0
    if not sizes_fit or min(asked.blocks, *asked.rows) < 1:
        parser.error("--rows and --blocks must be 1 or more, --hidden a multiple of 256, --inside of 64")
    if asked.fake:
        os.environ["TRITON_INTERPRET"] = "1"
    elif not torch.cuda.is_available():
        parser.error("there is no GPU here; --fake runs the same in Triton's interpreter")
    variants: list[dict[str, int]] = [{}, *(variant(each) for each in asked.variants)]
    bandwidth = bytes_per_second(asked.fake)
    print(f"{'interpreter' if asked.fake else torch.cuda.get_device_name()}: a sum reads {bandwidth / 1e9:.0f} GB/s")
    found = [measured(asked, changes, bandwidth) for changes in variants]
    if asked.json:
        asked.json.write_text(json.dumps({"bytes_per_second": bandwidth, "variants": found}, indent=1))
    return int(any(row["error"] > 0.02 for each in found for row in each["rows"].values()))


if __name__ == "__main__":
    sys.exit(main())

"""The draft's products alone on a GPU: blocks of random weights, one launch after another in a CUDA graph, beside their bytes.

    python benchmarks/gpu_product.py --form all --seconds 150 --json products.json       which form to take, in one run
    python benchmarks/gpu_product.py --rows 1 8 16 64
    python benchmarks/gpu_product.py --set PAIRS_RESIDENT=12 STAGES=3 --form flat --form weights:rows=32,stages=4
    python benchmarks/gpu_product.py --fake --rows 2 --form flat

What is used comes first. Each `--set` is a variant: constants of `kernels/gpu/draft_product.py` with other values. Each `--form` is
another kernel of `gpu_candidates` in its place, by a name in `gpu_forms` (`all`: each of them), with changes. First each variant is
compiled and compared with torch's product by the same weights, in a process of its own, many at once; what is wrong, or fails, is
not timed (status 1). Then for each number of rows: microseconds a block, and how many times what its bytes take at the speed of a
sum over memory; last a table, and which variant is fastest. Nothing is begun after `--seconds`. `--fake` runs the same, small, in
Triton's interpreter, where no time means anything."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gpu_forms
from gpu_child import prepare_path

# bytes that are summed to see what memory gives
SUMMED = 1 << 30
REPEATED, BEST_OF = 12, 3
GROUP = 64
# launches after a norm, and those whose results are added to something
NORMED, ADDED = ("qkv", "gate up"), ("o", "down")
# hidden size, inner size, blocks
USUAL, SMALL = (5120, 8960, 8), (256, 192, 1)
# the largest relative error of a launch
SOUND = 0.02
# seconds in which a variant is compiled and compared
CHECKED_IN = 120.0


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
        from understudy.kernels.join_form import GateKind, JoinForm

        small = hidden // 4
        shapes = {"qkv": [(hidden, hidden), (small, hidden), (small, hidden)], "o": [(hidden, hidden)]}
        shapes |= {"gate up": [(inside, hidden), (inside, hidden)], "down": [(hidden, inside)]}
        self.weights = {name: [weight(*shape, where) for shape in each] for name, each in shapes.items()}
        self.norm = norm
        self.launches = {
            name: JoinedGrouped(
                [GroupedProduct(*one) for one in each],
                JoinForm(norm if name in NORMED else None, gate=GateKind.SILU if name == "gate up" else None),
            )
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


def constants(given: Sequence[str]) -> dict[str, int]:
    """NAME=VALUE, each a constant of `draft_product`."""
    from understudy.kernels.gpu import draft_product

    found = {}
    for one in given:
        name, _, value = one.partition("=")
        if not isinstance(getattr(draft_product, name, None), int) or not value.isdigit():
            raise SystemExit(f"gpu_product: --set {one}: a constant of kernels/gpu/draft_product.py and a whole number, NAME=VALUE")
        found[name] = int(value)
    return found


@dataclass(frozen=True)
class Variant:
    """What is timed: the words that ask for it (none: what is used), constants, and another form."""

    words: tuple[str, ...] = ()
    changes: dict[str, int] = field(default_factory=dict)
    form: gpu_forms.Form | None = None

    @property
    def name(self) -> str:
        return " ".join(self.words[1:]) or "as it is"

    def timed(self, asked: argparse.Namespace, bandwidth: float) -> dict[str, Any]:
        """Errors and, where a bandwidth is given, microseconds, for each number of rows."""
        from understudy.kernels.gpu import draft_product

        before = {name: getattr(draft_product, name) for name in self.changes}
        vars(draft_product).update(self.changes)
        draft_product.running.cache_clear()
        try:
            with gpu_forms.in_place(self.form):
                return {"name": self.name, "changes": self.changes, "rows": dict(self._rows(asked, bandwidth))}
        finally:
            vars(draft_product).update(before)
            draft_product.running.cache_clear()

    def _rows(self, asked: argparse.Namespace, bandwidth: float) -> Iterator[tuple[int, dict[str, float]]]:
        from understudy.kernels.join_form import Norm

        where = "cpu" if asked.fake else "cuda"
        torch.manual_seed(0)
        norm = Norm(torch.rand(asked.hidden, device=where) + 0.5, 1e-5)
        blocks = [Block(asked.hidden, asked.inside, norm, where) for _ in range(asked.blocks if bandwidth else 1)]
        for rows in asked.rows:
            given = given_of(rows, asked.hidden, asked.inside, where)
            found = {"error": blocks[0].off(given)}
            if bandwidth:
                taken = seconds(lambda given=given: [block.run(given) for block in blocks], asked.fake)
                bound = sum(block.nbytes for block in blocks) / bandwidth
                found |= {"us": 1e6 * taken / len(blocks), "x bytes": taken / bound}
                said = f"{found['us']:.1f} us a block, {found['x bytes']:.2f} x its bytes, error {found['error']:.1e}"
                print(f"{self.name}, {rows} rows: {said}", flush=True)
            yield rows, found


def checked(asked: argparse.Namespace, variant: Variant) -> str:
    """What is wrong with `variant`, compiled and compared in a process of its own, which may fail; nothing if all is well."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        sizes = [f"--{name}={getattr(asked, name)}" for name in ("hidden", "inside")]
        fake = ["--fake"] if asked.fake else []
        words = [*sizes, "--rows", *map(str, asked.rows), *fake, *variant.words, "--only-compare", "--json", str(file)]
        try:
            done = subprocess.run(
                [sys.executable, __file__, *words], capture_output=True, text=True, timeout=min(CHECKED_IN, asked.seconds)
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return "it was not compiled in time"
        if done.returncode:
            return (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1].strip()
        worst = max(row["error"] for row in json.loads(file.read_text())["rows"].values())
        return "" if worst <= SOUND else f"its results are off by {worst:.1e}"


def table(found: Sequence[dict[str, Any]], rows: Sequence[int]) -> str:
    """Microseconds of each variant that was timed, and the fastest for each number of rows."""
    lines = [f"| microseconds a block | {' | '.join(f'{count} rows' for count in rows)} |", "|---" * (len(rows) + 1) + "|"]
    lines += [f"| {one['name']} | {' | '.join(format(one['rows'][count]['us'], '.1f') for count in rows)} |" for one in found]
    for count in rows:
        best = min(found, key=lambda one: one["rows"][count]["us"])
        usual = found[0]["rows"][count]["us"]
        lines.append(f"{count} rows: {best['name']} takes {best['rows'][count]['us'] / usual:.2f} of what {found[0]['name']} does")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Times the draft's 4-bit products on a GPU.")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 16, 64])
    parser.add_argument("--hidden", type=int, help=f"multiple of 256 (default {USUAL[0]})")
    parser.add_argument("--inside", type=int, help=f"multiple of 64 (default {USUAL[1]})")
    parser.add_argument("--blocks", type=int, help=f"so many, so that no cache holds them (default {USUAL[2]})")
    parser.add_argument("--set", nargs="+", action="append", default=[], metavar="NAME=VALUE", dest="variants")
    parser.add_argument("--form", action="append", default=[], metavar="NAME[:field=value,...]", dest="forms")
    parser.add_argument("--seconds", type=float, default=240.0, help="after which nothing is begun")
    parser.add_argument("--fake", action="store_true", help="in Triton's interpreter")
    parser.add_argument("--json", type=Path, help="all that was found, written after each variant")
    parser.add_argument("--only-compare", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    for name, size in zip(("hidden", "inside", "blocks"), SMALL if asked.fake else USUAL, strict=True):
        if getattr(asked, name) is None:
            setattr(asked, name, size)
    sizes_fit = asked.hidden > 0 and asked.hidden % 256 == 0 and asked.inside > 0 and asked.inside % 64 == 0
    if not sizes_fit or min(asked.blocks, *asked.rows, asked.seconds) <= 0:
        parser.error("--rows, --blocks and --seconds must be more than 0, --hidden a multiple of 256, --inside of 64")
    if not asked.fake and not torch.cuda.is_available():
        parser.error("there is no GPU here; --fake runs the same in Triton's interpreter")
    return asked


def wanted(asked: argparse.Namespace) -> list[Variant]:
    """What is used, then each variant that was asked for; in a process that only compares, that alone."""
    forms = [name for form in asked.forms for name in (gpu_forms.FORMS if form == "all" else (form,))]
    found = [Variant(("--set", *each), constants(each)) for each in asked.variants]
    found += [Variant(("--form", form), form=gpu_forms.named(form)) for form in forms]
    return found if asked.only_compare and found else [Variant(), *found]


def main() -> int:
    asked = arguments()
    began = time.monotonic()
    prepare_path(asked.fake)
    if asked.fake:
        gpu_forms.interpreted()
    variants = wanted(asked)
    if asked.only_compare:
        asked.json.write_text(json.dumps(variants[0].timed(asked, 0.0)))
        return 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        troubles = dict(zip([each.name for each in variants], pool.map(lambda each: checked(asked, each), variants), strict=True))
    for name, trouble in troubles.items():
        print(f"{'WRONG' if trouble else 'right'}  {name}{': ' + trouble if trouble else ''}", flush=True)
    bandwidth = bytes_per_second(asked.fake)
    print(f"{'interpreter' if asked.fake else torch.cuda.get_device_name()}: a sum reads {bandwidth / 1e9:.0f} GB/s")
    found: list[dict[str, Any]] = []
    for each in variants:
        if troubles[each.name]:
            continue
        if found and time.monotonic() - began > asked.seconds:
            print(f"{each.name}: no time was left", flush=True)
            continue
        found.append(each.timed(asked, bandwidth))
        if asked.json:
            asked.json.write_text(json.dumps({"bytes_per_second": bandwidth, "troubles": troubles, "variants": found}, indent=1))
    if found:
        print(table(found, asked.rows))
    return int(any(troubles.values()))


if __name__ == "__main__":
    sys.exit(main())

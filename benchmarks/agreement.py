"""How often a 4-bit copy chooses the exact model's token, for stand-ins of several widths and amounts of noise.

    python benchmarks/agreement.py --widen 2 4 --noise 0 3 5 --quantizer nearest int4

Each stand-in is made in a temporary folder, run in bf16 over what the small model writes greedily from held-out beginnings (the
text that drafts are about), quantised and run again. Also says how often the stand-in itself chooses the small model's token,
since bf16 rounds its larger weights anew.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import standin
from understudy.demo import path
from understudy.demo.corpus import documents
from understudy.demo.measure import PROMPT_TOKENS, choices, continuations, replace_linears, rounded, windows_of
from understudy.quantizers import quantizer

WINDOW = 256
NEW_TOKENS = 128


def rounding(name: str) -> Callable[[Tensor], Tensor]:
    """A weight to the one its 4-bit copy stands for: rounded to nearest, or by one of Understudy's quantisers."""
    if name == "nearest":
        return rounded
    made = quantizer(name)
    return lambda weight: made.dequantize(made.quantize(weight), (weight.shape[0], weight.shape[1])).to(weight.dtype)


def chosen(model: Path, written: Tensor, quantizers: list[str]) -> dict[str, Tensor]:
    """The greedy choices of a model and of its copies, after each beginning."""
    found = {}
    for name in ("exact", *quantizers):
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
        if name != "exact":
            replace_linears(loaded, rounding(name))
        found[name] = choices(loaded, written)[0][:, PROMPT_TOKENS - 1 :]
        del loaded
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Agreement of 4-bit copies with stand-ins.")
    parser.add_argument(
        "--source", type=Path, default=path(), help="the small model (default: the built-in demo model)"
    )
    parser.add_argument("--standin", type=Path, help="measure this finished stand-in instead of making some")
    parser.add_argument("--widen", type=int, nargs="+", default=[4])
    parser.add_argument("--noise", type=float, nargs="+", default=[3.0])
    parser.add_argument("--quantizer", nargs="+", default=["nearest", "int4"])
    parser.add_argument("--windows", type=int, default=40, help=f"how many beginnings, {NEW_TOKENS} tokens each")
    parser.add_argument("--folder", type=Path, help="where stand-ins are made (default: the system's choice)")
    given = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(given.source)
    texts = [document.text for document in documents() if document.held_out]
    windows = windows_of(tokenizer, texts, WINDOW)
    windows = windows[:: max(1, len(windows) // given.windows)][: given.windows]
    exact = AutoModelForCausalLM.from_pretrained(given.source, dtype=torch.bfloat16).eval()
    written = continuations(exact, windows, NEW_TOKENS)
    small = chosen(given.source, written, given.quantizer)
    print(f"{len(written) * NEW_TOKENS} places", file=sys.stderr)
    same = small["exact"]
    report(0, 0.0, small, same)
    if given.standin:
        note = json.loads((given.standin / "config.json").read_text())["understudy_stand_in"]
        report(note["widen"], note["noise"], chosen(given.standin, written, given.quantizer), same)
        return
    for widen in given.widen:
        for noise in given.noise:
            with tempfile.TemporaryDirectory(dir=given.folder) as folder:
                wide = Path(folder) / "wide"
                standin.make(given.source, wide, standin.Widening(widen, noise))
                report(widen, noise, chosen(wide, written, given.quantizer), same)


def report(widen: int, noise: float, found: dict[str, Tensor], small: Tensor) -> None:
    """One line: the small model is width 0."""
    exact = found.pop("exact")
    shares = {name: round(float((copied == exact).double().mean()), 4) for name, copied in found.items()}
    same = round(float((exact == small).double().mean()), 4)
    print(json.dumps({"widen": widen, "noise": noise, "as_the_small_model": same} | shares), flush=True)


if __name__ == "__main__":
    main()

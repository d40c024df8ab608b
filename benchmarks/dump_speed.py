"""How fast hidden states of texts are dumped, beside the model's own reading of the same texts.

    python benchmarks/dump_speed.py --data FILE [--model MODEL] [--turns 8]

In turns in one process some pieces are dumped, as `understudy train` does, and read by a model that hands nothing out, in
passes of as many tokens. Compared are seconds of this process on processors, so it matters little what else the machine does."""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from understudy import LLM
from understudy.models.model import Model
from understudy.models.stock.configuration import tokenizer_of
from understudy.training.data import Pieces, TextReader
from understudy.training.dump import NOTHING, Dump, DumpSize
from understudy.tree import Nodes, TokenTree

# Rows of the cache, and pieces of a turn: as many as a few passes read.
ROWS, PIECES = 8, 8
TAPS = (-1,)


def quiet(stage: str, done: float, total: float) -> None:
    """Reports nothing."""


@torch.inference_mode()
def read(model: Model, pieces: Pieces) -> None:
    """Read `pieces` as prompts are read, as many in each pass as it has room for."""
    waiting = list(range(len(pieces)))
    while waiting:
        group, room = [], model.plan.pass_nodes
        while waiting and len(group) < ROWS and pieces.length(waiting[0]) <= room:
            group.append(waiting.pop(0))
            room -= pieces.length(group[-1])
        texts = [pieces.tokens[pieces.part(piece)].tolist() for piece in group]
        for row in range(len(texts)):
            model.cache.rewind(row, 0)
        with model.guard():
            model.verify(Nodes.join([Nodes.of(TokenTree.chain(text), row, 0) for row, text in enumerate(texts)]), NOTHING)
        for row, text in enumerate(texts):
            model.cache.keep(row, torch.arange(len(text)))


def seconds(work: Callable[..., None], *given: object) -> float:
    """Seconds on processors that `work(*given)` takes."""
    start = time.process_time()
    work(*given)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="Dumping hidden states beside reading.")
    parser.add_argument("--model", help="a checkpoint or Store (default: the built-in model)")
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--turns", type=int, default=8)
    given = parser.parse_args()
    options = {"context": given.context, "method": "none", "rows": ROWS}
    with LLM(given.model, **options) as plain, LLM(given.model, taps=TAPS, **options) as tapped:
        store = plain.store
        pieces = TextReader(tokenizer_of(store.path, store.embedding.shape[0]), given.context).read(given.data)
        turns = [pieces.of(range(first, first + PIECES)) for first in range(0, PIECES * (given.turns + 1), PIECES)]
        with tempfile.TemporaryDirectory() as folder:
            dump = Dump(Path(folder), DumpSize(TAPS, tapped.model.hidden_size, tapped.model.dtype), {})
            found = [(seconds(read, plain.model, turn), seconds(dump.fill, turn, tapped.model, quiet)) for turn in turns][1:]
            dump.close()
    shares = [reading / dumping for reading, dumping in found]
    tokens = sum(turn.edges[-1] for turn in turns[1:])
    reading, dumping = (sum(column) for column in zip(*found, strict=True))
    print(f"{tokens:,} tokens: reading {tokens / reading:,.0f} tokens a second of a processor, dumping {tokens / dumping:,.0f}")
    print(f"dumping has {median(shares):.2f} of the speed of reading (median of turns; {min(shares):.2f} to {max(shares):.2f})")


if __name__ == "__main__":
    main()

"""Makes a stand-in: a Llama of any size that computes the same function as a small one.

    python benchmarks/standin.py --output DIR --widen 20 --noise 3 [--source DIR]

Speed is then measured at a real size, on text with meaning. Every hidden dimension is repeated k times: the widened
vector is k copies of the small one, end to end. A widened matrix is a k x k grid of blocks, each W/k plus noise, and along
a row of the grid the noise sums to zero; since the k copies of the input are equal, the noise cancels and every copy of the
output is what it was. Norms and embeddings repeat (the mean square does not change), whole heads repeat (query head c*H + i
still reads key head c*G + i // (H/G), so grouping and rotary positions are untouched), and the head, whose outputs are not
widened, becomes a matrix of its own with W/k. In exact arithmetic the function is the same.

With `--device cuda` the GPU does the arithmetic, in a few seconds for billions of weights. It draws other noise than a processor
does from the same seed, so the bits differ; the checkpoint's config.json says where they were drawn.

The noise is there for the quantiser: it makes the weights hard to round, and its size (in standard deviations of W/k) sets
how often a 4-bit copy agrees with the exact model. benchmarks/README.md has the measured table.
"""

import argparse
import json
import math
import shutil
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

DTYPES = {"bfloat16": (torch.bfloat16, "BF16"), "float32": (torch.float32, "F32")}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WIDENED = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
COPIED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
CHUNK_VALUES = 4 << 20
GPU_CHUNK_VALUES = 32 << 20
SHARD_BYTES = 2 << 30
MODEL_TYPES = ("llama", "mistral")


@dataclass(frozen=True)
class Widening:
    """What is asked for: `widen` copies, noise in standard deviations of W/k, drawn on `device`."""

    widen: int
    noise: float
    dtype: str = "bfloat16"
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class Piece:
    """One tensor of the stand-in: the small one it comes from, and how often it repeats along outputs and inputs."""

    name: str
    source: str
    rows: int
    columns: int
    divide: bool
    shape: tuple[int, ...]

    @property
    def values(self) -> int:
        return math.prod(self.shape)


def pieces(shapes: dict[str, tuple[int, ...]], widen: int) -> list[Piece]:
    """Every tensor of the stand-in, in the order of the small model's names, its own head last."""
    found = []
    for name, shape in shapes.items():
        if name == HEAD:
            continue
        if len(shape) == 1:
            found.append(Piece(name, name, widen, 1, False, (widen * shape[0],)))
        elif name == EMBEDDING:
            found.append(Piece(name, name, 1, widen, False, (shape[0], widen * shape[1])))
        else:
            found.append(Piece(name, name, widen, widen, True, (widen * shape[0], widen * shape[1])))
    head = HEAD if HEAD in shapes else EMBEDDING
    rows, columns = shapes[head]
    found.append(Piece(HEAD, head, 1, widen, True, (rows, widen * columns)))
    return found


def noisy_rows(weight: Tensor, widen: int, noise: float, generator: np.random.Generator) -> Tensor:
    """Rows [n, in] of a small matrix as [n, k*in]: W/k plus noise that sums to zero over the copies of each input."""
    plain = (weight / widen).numpy()[:, None, :]
    if noise == 0 or widen == 1:
        return torch.from_numpy(np.repeat(plain, widen, axis=1).reshape(len(weight), -1))
    drawn = generator.standard_normal((len(weight), widen, weight.shape[1]), dtype=np.float32)
    drawn -= drawn.mean(axis=1, keepdims=True)
    drawn *= noise * math.sqrt(widen / (widen - 1))
    drawn += plain
    return torch.from_numpy(drawn.reshape(len(weight), -1))


def noisy_rows_there(weight: Tensor, widen: int, noise: float, generator: torch.Generator) -> Tensor:
    """`noisy_rows` where `weight` lies, with noise of torch's own."""
    plain = (weight / widen)[:, None, :]
    if noise == 0 or widen == 1:
        return plain.expand(-1, widen, -1).reshape(len(weight), -1)
    drawn = torch.randn((len(weight), widen, weight.shape[1]), generator=generator, device=weight.device)
    drawn -= drawn.mean(dim=1, keepdim=True)
    return drawn.mul_(noise * math.sqrt(widen / (widen - 1))).add_(plain).view(len(weight), -1)


def widened(piece: Piece, weight: Tensor, asked: Widening) -> Iterator[Tensor]:
    """The tensor of the stand-in in order, a few rows at a time, on the device that was asked for."""
    if not piece.divide:
        yield weight.repeat(piece.rows) if weight.ndim == 1 else weight.repeat(1, piece.columns)
        return
    if asked.device != "cpu":
        yield from widened_there(piece, weight, asked)
        return
    generator = np.random.Generator(np.random.SFC64([asked.seed, *piece.name.encode()]))
    deviation = asked.noise * float(weight.std()) / asked.widen
    step = max(1, CHUNK_VALUES // (weight.shape[1] * piece.columns))
    for _ in range(piece.rows):
        for rows in weight.split(step):
            yield noisy_rows(rows, piece.columns, deviation, generator)


def widened_there(piece: Piece, weight: Tensor, asked: Widening) -> Iterator[Tensor]:
    """`widened` by another device than the processor."""
    there = weight.to(asked.device)
    seed = zlib.crc32(piece.name.encode(), asked.seed & 0xFFFFFFFF)
    generator = torch.Generator(asked.device).manual_seed(seed)
    deviation = asked.noise * float(weight.std()) / asked.widen
    step = max(1, GPU_CHUNK_VALUES // (weight.shape[1] * piece.columns))
    for _ in range(piece.rows):
        for rows in there.split(step):
            yield noisy_rows_there(rows, piece.columns, deviation, generator)


def shards(found: list[Piece], item: int, limit: int) -> list[list[Piece]]:
    """The tensors in files of at most `limit` bytes (a larger tensor has one to itself)."""
    files: list[list[Piece]] = [[]]
    size = 0
    for piece in found:
        if files[-1] and size + piece.values * item > limit:
            files.append([])
            size = 0
        files[-1].append(piece)
        size += piece.values * item
    return files


def header(file: list[Piece], label: str, item: int) -> bytes:
    """The head of a safetensors file, padded so that the data is aligned."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for piece in file:
        end = offset + piece.values * item
        entries[piece.name] = {"dtype": label, "shape": piece.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-(8 + len(text)) % 4096)
    return struct.pack("<Q", len(text)) + text


def read_small(source: Path) -> dict[str, Tensor]:
    """Every tensor of the small model, in fp32."""
    tensors = {}
    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            names = opened.keys()
            tensors |= {name: opened.get_tensor(name).float() for name in names}
    if not tensors:
        raise SystemExit(f"standin: no *.safetensors in {source}; give a local model directory with --source")
    return tensors


def configuration(source: Path, asked: Widening) -> dict[str, Any]:
    """The small model's config.json, widened, with a note of what this checkpoint is."""
    config: dict[str, Any] = json.loads((source / "config.json").read_text())
    if config.get("model_type") not in MODEL_TYPES:
        kinds = " or ".join(MODEL_TYPES)
        raise SystemExit(f"standin: model_type is {config.get('model_type')!r}; --source must be a {kinds} model")
    config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    config |= {name: config[name] * asked.widen for name in WIDENED}
    note: dict[str, Any] = {"widen": asked.widen, "noise": asked.noise, "seed": asked.seed}
    if asked.device != "cpu":
        note["drawn_on"] = asked.device
    return config | {"tie_word_embeddings": False, "dtype": asked.dtype, "understudy_stand_in": note}


def make(
    source: Path,
    output: Path,
    asked: Widening,
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Writes the stand-in to `output`, under another name until it is whole. Returns the bytes of its weights.

    One thread writes while the next values are made."""
    if output.exists():
        raise SystemExit(f"standin: {output} exists already; choose another --output or remove it")
    config = configuration(source, asked)
    small = read_small(source)
    dtype, label = DTYPES[asked.dtype]
    found = pieces({name: tuple(weight.shape) for name, weight in small.items()}, asked.widen)
    files = shards(found, dtype.itemsize, shard_bytes)
    total, done = sum(piece.values for piece in found) * dtype.itemsize, 0
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    names = {}
    for number, file in enumerate(files, 1):
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        names |= {piece.name: name for piece in file}
        with (partial / name).open("wb", buffering=0) as out, ThreadPoolExecutor(1) as writer:
            out.write(header(file, label, dtype.itemsize))
            writing: Future[int] | None = None
            for piece in file:
                for rows in widened(piece, small[piece.source], asked):
                    values = rows.to(dtype).cpu()
                    done += writing.result() if writing else 0
                    writing = writer.submit(write, out, values)
                    progress(done, total)
            done += writing.result() if writing else 0
            progress(done, total)
    index = {"metadata": {"total_size": total}, "weight_map": names}
    (partial / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    (partial / "config.json").write_text(json.dumps(config, indent=1))
    for copied in COPIED:
        if (source / copied).exists():
            shutil.copyfile(source / copied, partial / copied)
    partial.rename(output)
    return total


def write(out: RawIOBase, values: Tensor) -> int:
    """All the bytes of a tensor to a raw file, which may take fewer at a time."""
    left = memoryview(values.contiguous().view(torch.uint8).numpy().reshape(-1))
    size = len(left)
    while left:
        left = left[out.write(left) or 0 :]
    return size


def show(done: int, total: int, start: float) -> None:
    seconds = time.monotonic() - start
    print(f"\r{done / 1e9:7.2f} of {total / 1e9:.2f} GB  {seconds:5.0f} s", end="", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes a large checkpoint with the function of a small one.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--source", type=Path, help="a Llama directory (default: the built-in demo model)")
    parser.add_argument("--widen", type=int, default=20, help="k: parameters grow k*k times (20: 3.3 billion)")
    parser.add_argument("--noise", type=float, default=3.0, help="noise, in standard deviations of W/k")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="where noise is drawn; cuda: in seconds, and other noise")
    given = parser.parse_args()
    if given.widen < 1 or given.noise < 0:
        parser.error("--widen must be at least 1 and --noise at least 0")
    if given.source is None:
        from understudy.demo import path

        given.source = path()
    start = time.monotonic()
    asked = Widening(given.widen, given.noise, given.dtype, given.seed, given.device)
    total = make(given.source, given.output, asked, progress=lambda done, total: show(done, total, start))
    print(f"\n{given.output}: stand-in, {total / 1e9:.2f} GB in {time.monotonic() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()

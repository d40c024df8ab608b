"""Exact byte ranges of files to and from tensors, with checksums. No file is ever mapped or held whole."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from ..errors import UnderstudyError
from ..kernels.pack import flat

# Bytes read at a time of what is copied or checked as it is.
CHUNK = 8 << 20


def read_bytes(path: Path, offset: int, into: Tensor, error: type[UnderstudyError]) -> None:
    """Fill the one-dimensional uint8 tensor `into` from `path`; `error` names the file if it ends early."""
    view = buffer(into)
    done = 0
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror}. Get the model again.") from None
    try:
        while done < len(view):
            count = os.preadv(descriptor, [view[done:]], offset + done)
            if count == 0:
                raise error(f"{path} ends at byte {offset + done} where {offset + len(view)} are needed. Get it again.")
            done += count
    except OSError as problem:
        raise error(f"Reading {path} failed at byte {offset + done}: {problem.strerror}.") from None
    finally:
        os.close(descriptor)


def read_tensor(
    path: Path, offset: int, dtype: torch.dtype, shape: tuple[int, ...], error: type[UnderstudyError]
) -> Tensor:
    """A new tensor from the bytes at `offset`."""
    tensor = torch.empty(shape, dtype=dtype)
    read_bytes(path, offset, flat(tensor), error)
    return tensor


def read_columns(
    path: Path, offset: int, dtype: torch.dtype, shape: tuple[int, int], columns: tuple[int, int], error: type[UnderstudyError]
) -> Tensor:
    """Of the matrix of this `shape` at `offset`, some columns: the first one, and how many."""
    (lines, width), (first, count) = shape, columns
    if count == width:
        return read_tensor(path, offset, dtype, shape, error)
    found = torch.empty(lines, count, dtype=dtype)
    for line, own in enumerate(found):
        read_bytes(path, offset + (line * width + first) * dtype.itemsize, flat(own), error)
    return found


def byte_chunks(path: Path, offset: int, nbytes: int, error: type[UnderstudyError]) -> Iterator[Tensor]:
    """The `nbytes` bytes at `offset` of a file, as uint8 tensors of at most CHUNK bytes."""
    for start in range(0, nbytes, CHUNK):
        data = torch.empty(min(CHUNK, nbytes - start), dtype=torch.uint8)
        read_bytes(path, offset + start, data, error)
        yield data


def buffer(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor for reading or writing: no copy."""
    return memoryview(flat(tensor).numpy())  # type: ignore[arg-type]


def checksum(pieces: Iterable[Tensor]) -> str:
    """xxh3_64 over the bytes of the tensors, one after the other."""
    digest = xxhash.xxh3_64()
    for piece in pieces:
        digest.update(buffer(piece))
    return digest.hexdigest()

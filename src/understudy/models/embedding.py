"""The embedding is a lookup table: it stays in the slow tier, and only the rows of the tokens at hand are gathered."""

import os
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import TransferError
from ..weights.store import Stored


class EmbeddingRows:
    """Puts the rows of given tokens in the stock embedding module as its weight; row i of it is token i of the call.

    The latest `room` bytes of rows are kept. The file is read with pread: no mapping, no whole table."""

    def __init__(self, module: nn.Module, path: Path, table: Stored, room: int, device: str = "cpu"):
        self.module, self.path, self.device = module, path, device
        self.offset, self.dtype, (self.rows, self.width) = table.offset, table.dtype, table.shape
        self.stride = self.width * self.dtype.itemsize
        self.keep = max(room // self.stride, 64)
        self.cached: OrderedDict[int, Tensor] = OrderedDict()
        self.file = os.open(path, os.O_RDONLY)
        self.compute = next(iter(module.parameters())).dtype

    def __call__(self, tokens: Tensor) -> None:
        """tokens: [n] ids. Raises TransferError when the file ends too early."""
        rows = torch.stack([self._row(token) for token in tokens.tolist()])
        self.module.weight = nn.Parameter(rows.to(self.device, self.compute), requires_grad=False)

    def _row(self, token: int) -> Tensor:
        assert 0 <= token < self.rows, f"token {token} is not in a vocabulary of {self.rows}"
        row = self.cached.get(token)
        if row is None:
            data = os.pread(self.file, self.stride, self.offset + token * self.stride)
            if len(data) != self.stride:
                raise TransferError(
                    f"{self.path} is cut short: embedding row {token} lacks {self.stride - len(data)} bytes; prepare again."
                )
            row = torch.frombuffer(bytearray(data), dtype=self.dtype)
            self.cached[token] = row
            if len(self.cached) > self.keep:
                self.cached.popitem(last=False)
        else:
            self.cached.move_to_end(token)
        return row

    def close(self) -> None:
        if self.file >= 0:
            os.close(self.file)
            self.file = -1

"""Blocks of exact weights as products take them: where they lie, or codes and residual from which they are rebuilt."""

import ctypes

import torch
from torch import Tensor

from . import eighths_coding, scaled_codes
from .descriptor import ResidualBlocks
from .eighths_coding import Factors
from .fours import SHARED
from .pack import BLOCK
from .residual import Residual, described
from .scaled_codes import ScaledCodes

# the addresses of a `ResidualBlocks` that are in a part's own bytes
MOVED = ("dense", "stream", "table", "exceptions", "factors", "trailing")


class Operand:
    """Blocks of weights as `exact_product.BlockProduct` takes them. Keeps the tensors in which they lie."""

    def __init__(
        self, described: ResidualBlocks, plain: int, *kept: object, dtype: torch.dtype = torch.bfloat16, line: int = 2 * BLOCK
    ) -> None:
        self.blocks: int = described.count
        self.columns: int = described.columns
        self.group: int = described.group
        # the weights' type, and the bytes of a column of a block as it lies or is rebuilt
        self.dtype, self.line = dtype, line
        # whether they lie as float16
        self.halves = dtype == torch.float16 and plain != 0
        # address of plain weights; 0 where they are rebuilt
        self.weights = plain
        self.description = ctypes.addressof(described)
        self._described = described
        self._kept = kept
        # where it was moved to
        self._data: Tensor | None = None

    @classmethod
    def plain(cls, blocks: Tensor) -> "Operand":
        """Weights [nb, K, 64] as they are."""
        assert blocks.is_contiguous()
        shape = ResidualBlocks(count=blocks.shape[0], columns=blocks.shape[1], group=1)
        return cls(shape, blocks.data_ptr(), blocks, dtype=blocks.dtype, line=BLOCK * blocks.dtype.itemsize)

    @classmethod
    def packed(cls, residual: Residual, codes: Tensor, scales: Tensor, dtype: torch.dtype = torch.bfloat16) -> "Operand":
        """The weights, of the type `dtype`, that `residual` and `codes` [nb, K, 8 * bits] with their `scales` stand for."""
        return cls(described(residual, codes, scales), 0, residual, codes, scales, dtype=dtype)

    @classmethod
    def fours(cls, codes: Tensor, exponents: Tensor) -> "Operand":
        """The weights that codes [nb, K, 32] in MXFP4 and their exponents stand for (`kernels.fours`)."""
        assert codes.is_contiguous() and exponents.is_contiguous()
        shape = ResidualBlocks(
            count=codes.shape[0], columns=codes.shape[1], group=SHARED, dense=codes.data_ptr(), stream=exponents.data_ptr()
        )
        return cls(shape, 0, codes, exponents)

    @classmethod
    def eighths(cls, residual: Residual, codes: Tensor, scales: Tensor, factors: Factors) -> "Operand":
        """The weights that `residual` and `codes` stand for in units of `factors` (`kernels.eighths`)."""
        return cls(eighths_coding.described(residual, codes, scales, factors), 0, residual, codes, scales, factors)

    @classmethod
    def scaled(cls, made: ScaledCodes, dtype: torch.dtype = torch.bfloat16) -> "Operand":
        """The weights, of the type `dtype`, that codes of four bits with their scales stand for (`kernels.scaled_fours`)."""
        line = BLOCK * (4 if dtype == torch.float16 else 2)
        return cls(scaled_codes.described(made, dtype), 0, made, dtype=dtype, line=line)

    def lies_in(self, data: Tensor) -> bool:
        """Whether all that it reads, but for codes and scales, is in the bytes `data`."""
        start = data.data_ptr()
        return all(start <= place < start + data.nbytes for place in self._places())

    def move(self, by: int, data: Tensor) -> None:
        """Let it read the same bytes where they lie now, in `data`, `by` bytes further on. No product may be under way."""
        if self.weights:
            self.weights += by
        else:
            for name in MOVED:
                if place := getattr(self._described, name):
                    setattr(self._described, name, place + by)
        self._data = data

    def _places(self) -> list[int]:
        """Addresses of what it reads, but for codes and scales; where there is nothing to read there is none."""
        return [place for place in [self.weights, *(getattr(self._described, name) for name in MOVED)] if place]

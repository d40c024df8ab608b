"""Rows times matrices of codes, one matrix of each expert of a layer: all lie one below the other, as one tall matrix.

A run multiplies by the blocks of one expert where they lie in the tall matrix: nothing is cut out or copied."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from . import team
from .compiled import bits_of
from .draft_descriptors import CodedMatrix, DraftRun
from .draft_product import ONE_THREAD, Product, entries, lead_of


class ExpertProduct:
    """The linear maps x -> x @ weight.T of `experts`, whose matrices [rows, K] are codes uint8 [experts * nb, K, 8 * bits] with
    `scales` bfloat16 [groups, experts * nb * 64, 2]; see `draft_product.Product`. No block is padded."""

    def __init__(self, codes: Tensor, scales: Tensor, experts: int) -> None:
        total, self.columns, _ = codes.shape
        assert total % experts == 0, f"{total} blocks of {experts} experts"
        self.experts = experts
        self.blocks = total // experts
        self.rows = self.blocks * 64
        whole = Product(codes, scales, self.rows)
        # it keeps codes and scales
        self._whole = whole
        self._block_bytes = codes.nbytes // total
        self._small = codes.nbytes // experts < ONE_THREAD
        self.step = whole.step
        # to round a row: codes and steps
        self.row_bytes = self.columns + self.columns // whole.step * 8

    def matrix_of(self, expert: int, first: int, blocks: int) -> CodedMatrix:
        """So many blocks of the matrix of an expert, from its block number `first` on."""
        matrix = CodedMatrix.from_buffer_copy(self._whole.matrix)
        matrix.codes += (expert * self.blocks + first) * self._block_bytes
        matrix.scales += (expert * self.blocks + first) * 256
        matrix.blocks, matrix.outputs = blocks, blocks * 64
        return matrix

    def __call__(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """x [m, K] -> [m, rows]: the first counts[0] rows times the matrix of the first expert, those after them times that of the
        second, and so on. Rows after all of those give zeros."""
        if x.dtype not in (torch.bfloat16, torch.float32):
            return self(x.float(), counts).to(x.dtype)
        x = x.contiguous()
        y = torch.empty((len(x), self.rows), dtype=x.dtype)
        scratch = torch.empty(max(counts, default=0) * self.row_bytes, dtype=torch.uint8)
        lead, work = entries()
        run = DraftRun(
            count=1,
            blocks=self.blocks,
            outputs=self.rows,
            columns=self.columns,
            step=self._whole.step,
            itemsize=x.itemsize,
            times=bits_of(1.0), scale=bits_of(1.0),
            scratch=scratch.data_ptr(),
            work=work,
            parallel=team.parallel(),
            threads=1 if self._small else team.threads(),
        )
        multiply, place = lead_of(lead), ctypes.addressof(run)
        start = 0
        for expert, count in enumerate(counts):
            if count:
                matrix = self.matrix_of(expert, 0, self.blocks)
                run.matrices = ctypes.addressof(matrix)
                run.rows, run.taken = count, 0
                run.x = x.data_ptr() + start * self.columns * x.itemsize
                run.y = y.data_ptr() + start * self.rows * x.itemsize
                multiply(place)
                start += count
        y[start:] = 0
        return y

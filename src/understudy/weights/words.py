"""Codes of four bits, eight in a word of 32 bits, in the orders in which they are published.

compressed-tensors stores a matrix row by row, as everything else is. GPTQ and AWQ store it transposed, with a row of words for some
inputs: a word of GPTQ has eight inputs of one output, a word of AWQ one input of eight outputs, the even ones first. Zero points of
both, in words of eight outputs, stand in a row for each group of inputs; those of compressed-tensors in a column.

What comes out has a row for each output: codes two to a byte, the first one in the lower half, and zero points less CENTRE."""

import torch
from torch import Tensor

from ..kernels.pack import flat

GPTQ, AWQ = "gptq", "awq"
CENTRE = 8
# The outputs of a word of AWQ, the one in the lowest bits first.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_PLAIN = tuple(range(8))
# A word with a 1 for each of its codes.
_ONES = 0x11111111


def window(order: str, first: int, count: int) -> tuple[int, int]:
    """Of the words in a row of published codes, those that outputs `first`.. are in: the first one, and how many."""
    if order == GPTQ:
        return first, count
    return first // 8, -(-(first + count) // 8) - first // 8


def rows_of(order: str, words: Tensor, first: int, count: int) -> Tensor:
    """The codes [count, inputs / 2] of outputs `first`.., of the words that `window` names."""
    if order == GPTQ:
        return flat(words.T.contiguous()).view(count, -1)
    codes = _spread(words, _AWQ_ORDER)[:, first % 8 : first % 8 + count].T.contiguous()
    return codes[:, ::2] | codes[:, 1::2] << 4


def published(order: str, codes: Tensor) -> Tensor:
    """The words of a whole matrix with these codes [outputs, inputs / 2]: the opposite of `rows_of`."""
    if order == GPTQ:
        return flat(codes.contiguous()).view(torch.int32).view(len(codes), -1).T.contiguous()
    columns = torch.stack((codes & 15, codes >> 4), dim=2).view(len(codes), -1).T
    places = columns.reshape(len(columns), -1, 8)[..., _AWQ_ORDER]
    pairs = (places[..., ::2] | places[..., 1::2] << 4).contiguous()
    return flat(pairs).view(torch.int32).view(pairs.shape[:2])


def points(order: str, words: Tensor, first: int, count: int, more: int) -> Tensor:
    """The zero points less CENTRE, int8 [count, groups], of outputs `first`.. of all words. `more`: by how much they are more than
    what is published, in words of which each code may carry into the next."""
    by_outputs = words if order else words.T
    start, width = window(AWQ, first, count)
    own = by_outputs[:, start : start + width] + more * _ONES
    spread = _spread(own.contiguous(), _AWQ_ORDER if order == AWQ else _PLAIN)[:, first % 8 : first % 8 + count]
    return spread.T.to(torch.int8) - CENTRE


def _spread(words: Tensor, order: tuple[int, ...]) -> Tensor:
    """The codes of words [n, w], whose eight outputs stand in this order: uint8 [n, 8 * w]."""
    pairs = flat(words.contiguous()).view(*words.shape, 4)
    codes = torch.stack((pairs & 15, pairs >> 4), dim=3).view(*words.shape, 8)
    places = [order.index(output) for output in range(8)]
    return codes[..., places].view(len(words), -1)

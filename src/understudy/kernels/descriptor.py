"""What a kernel is told of one run: structures of int64 numbers and addresses, whose fields have one name on both sides.

Python fills a structure, and a kernel is given its address. An address is of memory that the caller keeps for the run.
Every run begins with the counter `taken`, from which the threads of a team take pieces of work (`team.take`)."""

import ctypes
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numba
import numpy as np
import torch
from numba.extending import intrinsic
from torch import Tensor

types: Any = numba.types
NUMBER = ctypes.c_int64
# bytes by which rooms are apart
LINE = 64


class Descriptor(ctypes.Structure):
    """A structure of numbers. Without a dictionary, so that a name that is no field is refused."""

    __slots__ = ()


class ResidualBlocks(Descriptor):
    """Blocks of exact weights as codes and residual (`residual.Residual`)."""

    __slots__ = ()
    _fields_ = (
        ("count", NUMBER),
        ("columns", NUMBER),
        # columns of a tile, which share a scale
        ("group", NUMBER),
        # bytes between the scales of one tile and of the next of its block that has others, and how many tiles have the same
        ("scales_stride", NUMBER),
        ("sharing", NUMBER),
        # addresses: codes uint8 [count, columns, 8 * bits]; scales bfloat16 [groups, count * 64, 2]
        ("codes", NUMBER),
        ("scales", NUMBER),
        # addresses of the residual's four tensors
        ("dense", NUMBER),
        ("stream", NUMBER),
        ("table", NUMBER),
        ("exceptions", NUMBER),
        # of the dense part, for a column
        ("dense_bytes", NUMBER),
        # of a code: 2, 3, 4, 6 or 8; 0: there is no residual, but codes in MXFP4 (`fours`) at `dense`, their exponents at `stream`;
        # 1: there is none, but `scaled_codes`: codes at `dense`, scales at `factors`, zero points (if not 0) at `exceptions`;
        # 5: the same, weights being float16 on the way; 7: float16 made float32, scales being float16 or float32
        ("bits", NUMBER),
        # address of machine code that reads a tile in the place of what `bits` say (`eighths.reader`); 0: there is none
        ("reader", NUMBER),
        # address of float32 [count, any, factor_rows]: what the numbers of a tile are multiplied by; factor_rows is 64, or 1 where
        # all rows of a block have one, and each holds for factor_columns columns. Those of `scaled_codes` are of 64 rows, and may
        # have two bytes
        ("factors", NUMBER),
        ("factor_rows", NUMBER),
        ("factor_columns", NUMBER),
        # address of uint8 [count, columns, 24]: what float16 weights have beyond bfloat16 (`trailing`); 0: nothing
        ("trailing", NUMBER),
    )


class TileRun(Descriptor):
    """A tile that is read by machine code of its own; see `eighths.EighthsTile`."""

    __slots__ = ()
    _fields_ = (
        # addresses of the tile's codes, scales [64, 2] and dense part, and of the stream, and its first bit there
        ("codes", NUMBER),
        ("scales", NUMBER),
        ("dense", NUMBER),
        ("stream", NUMBER),
        ("start", NUMBER),
        ("columns", NUMBER),
        # address of bfloat16 [columns, 64]
        ("out", NUMBER),
        # address of float32, one for each row; where `step` is 0, one for all
        ("factors", NUMBER),
        ("step", NUMBER),
    )


class DecodeRun(Descriptor):
    """Blocks made whole; see `residual.decode`."""

    __slots__ = ()
    _fields_ = (
        ("taken", NUMBER),
        ("blocks", ResidualBlocks),
        # address of bfloat16 [count, columns, 64], or of float16 where `halves` is 1
        ("out", NUMBER),
        ("halves", NUMBER),
    )


class ExactOperand(Descriptor):
    """Blocks that `exact_product.BlockProduct` multiplies by, and where their outputs go."""

    __slots__ = ()
    _fields_ = (
        # address of a `ResidualBlocks`; of plain weights it has only count, columns and group
        ("blocks", NUMBER),
        # address of the weights [count, columns, 64]; 0 where they are rebuilt from codes and residual
        ("plain", NUMBER),
        # bytes between the start of a row of the result and the first output
        ("out", NUMBER),
        # bytes from the first number of a row that is given to the first that these blocks multiply
        ("given", NUMBER),
        # bytes of a column of weights as they lie or are rebuilt: 256 (float32), or 128: float16 where `halves` is 1, or bfloat16,
        # which may have `trailing` bits
        ("line", NUMBER),
        ("halves", NUMBER),
    )


class ExactRun(Descriptor):
    """Rows times the blocks of one or more operands; see `exact_product.BlockProduct`."""

    __slots__ = ()
    _fields_ = (
        ("taken", NUMBER),
        # how many operands, and the address of the first: they lie one after the other
        ("count", NUMBER),
        ("operands", NUMBER),
        ("columns", NUMBER),
        ("rows", NUMBER),
        # columns that are rebuilt, then multiplied, at once
        ("width", NUMBER),
        # address of x, bfloat16 or float32, and the bytes between one row and the next, and between one run of `width` columns
        # and the next
        ("x", NUMBER),
        ("row_bytes", NUMBER),
        ("run_bytes", NUMBER),
        # address of the result
        ("out", NUMBER),
        # bytes between one row of the result and the next
        ("out_stride", NUMBER),
        # rows of x that are multiplied, of which those after `rows` are padding
        ("height", NUMBER),
        # address of the shapes of tile registers (`amx_dot.shapes`); 0 where vectors multiply
        ("shapes", NUMBER),
    )


class RecurrentRun(Descriptor):
    """Nodes that read the state of a recurrent layer and leave their records; see `recurrence_cpu.recur`."""

    __slots__ = ()
    _fields_ = (
        ("taken", NUMBER),
        ("nodes", NUMBER),
        ("key_heads", NUMBER),
        ("value_heads", NUMBER),
        ("key_size", NUMBER),
        ("value_size", NUMBER),
        # of a row: places of its records
        ("places", NUMBER),
        # what each node reads at: 1 (its query) or 2 (its key as well)
        ("reads", NUMBER),
        # addresses of int64 [nodes]: rows, tokens before a node's base state, and records that it reads, its own included
        ("rows", NUMBER),
        ("bases", NUMBER),
        ("counts", NUMBER),
        # address of int64 [nodes, SPAN]: places of those records, in the order of positions
        ("paths", NUMBER),
        # addresses of float32: what is read at [nodes, key heads, reads, key size]; values and results [nodes, value heads, value
        # size]; the delta rule's shares [nodes, value heads]
        ("asked", NUMBER),
        ("values", NUMBER),
        ("beta", NUMBER),
        ("out", NUMBER),
        # addresses of float32: the layer's records and states (`recurrent.RecurrentState`)
        ("keys", NUMBER),
        ("updates", NUMBER),
        ("decays", NUMBER),
        ("states", NUMBER),
        # address of room for float32 [nodes, key heads, reads, SPAN]: products of what is read at with the records' keys
        ("products", NUMBER),
    )


class FoldRun(Descriptor):
    """Records of one row that become part of its state; see `recurrence_cpu.fold`."""

    __slots__ = ()
    _fields_ = (
        ("taken", NUMBER),
        ("key_heads", NUMBER),
        ("value_heads", NUMBER),
        ("key_size", NUMBER),
        ("value_size", NUMBER),
        # address of int64 [FOLD]: places of the records
        ("path", NUMBER),
        # addresses of float32, all of the row: its records, the state before them (0: there is none), and the one after them
        ("keys", NUMBER),
        ("updates", NUMBER),
        ("decays", NUMBER),
        ("before", NUMBER),
        ("after", NUMBER),
    )


class ChannelRun(Descriptor):
    """Steps of a layer that forgets by channel; see `channel_cpu.run_steps`."""

    __slots__ = ()
    _fields_ = (
        ("taken", NUMBER),
        ("rows", NUMBER),
        ("key_heads", NUMBER),
        ("value_heads", NUMBER),
        ("key_size", NUMBER),
        ("value_size", NUMBER),
        # addresses of int64: a `StepOrder`'s steps and firsts; addresses of the states that are saved
        ("steps", NUMBER),
        ("firsts", NUMBER),
        ("saves", NUMBER),
        # states that are held at once
        ("held", NUMBER),
        # addresses of float32, what the nodes bring (`recurrence.RuleStep`; beta 0: there are no shares), and of the results
        ("query", NUMBER),
        ("key", NUMBER),
        ("value", NUMBER),
        ("decay", NUMBER),
        ("beta", NUMBER),
        ("out", NUMBER),
        # addresses of float32: the layer's records (`recurrent.RecurrentState`), and rates [value heads, key size]
        ("keys", NUMBER),
        ("updates", NUMBER),
        ("decays", NUMBER),
        ("rates", NUMBER),
    )


class ConvolutionRun(Descriptor):
    """A short convolution along the paths of nodes; see `convolution_cpu.convolve`."""

    __slots__ = ()
    _fields_ = (
        ("taken", NUMBER),
        ("nodes", NUMBER),
        ("channels", NUMBER),
        ("taps", NUMBER),
        # bytes of an input and of a result: 2 (bfloat16) or 4 (float32); of a weight, the same
        ("itemsize", NUMBER),
        ("weight_itemsize", NUMBER),
        # address of int64 [nodes, taps]: which of all inputs each tap takes; -1: none
        ("path", NUMBER),
        # addresses: inputs [any, channels], results [nodes, channels], weights [channels, taps]
        ("inputs", NUMBER),
        ("out", NUMBER),
        ("weights", NUMBER),
        # address of float32 [channels]: what sums begin with
        ("bias", NUMBER),
    )


def rooms(sizes: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Room of these many bytes each, every one from a line of the processor's cache on: what must be kept for the run, and their
    addresses."""
    places = list(accumulate((-(-size // LINE) * LINE for size in sizes), initial=0))
    room = torch.empty(places[-1], dtype=torch.uint8)
    return room, [room.data_ptr() + place for place in places[:-1]]


def reader(kind: type[Descriptor]) -> Any:
    """For kernels: a function from an address to the structure of this kind that lies there."""
    record = numba.from_dtype(np.dtype(kind))

    @intrinsic
    def read(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(record))

        return record(types.int64), generate

    return read


decode_run, exact_run = map(reader, (DecodeRun, ExactRun))
recurrent_run, fold_run, convolution_run = map(reader, (RecurrentRun, FoldRun, ConvolutionRun))
channel_run = reader(ChannelRun)
exact_operand, residual_blocks, tile_run = map(reader, (ExactOperand, ResidualBlocks, TileRun))
OPERAND_BYTES = ctypes.sizeof(ExactOperand)

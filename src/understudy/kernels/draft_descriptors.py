"""What the kernels of the draft are told of one run (`descriptor`): products of codes, and the attention between them."""

import ctypes

from .descriptor import NUMBER, Descriptor, reader


class CodedMatrix(Descriptor):
    """A matrix of codes; see `draft_product.Product`."""

    __slots__ = ()
    _fields_ = (
        ("blocks", NUMBER),
        ("columns", NUMBER),
        # columns of x that share a step of int8
        ("step", NUMBER),
        # columns of the matrix that share a scale
        ("group", NUMBER),
        # of a code: 2, 3, 4, 6 or 8
        ("bits", NUMBER),
        # addresses: codes uint8 [blocks, columns, 8 * bits]; scales bfloat16 [groups, blocks * 64, 2], and the bytes between those
        # of one group and of the next: the matrix may be some blocks of a larger one
        ("codes", NUMBER),
        ("scales", NUMBER),
        ("scales_stride", NUMBER),
        # outputs; those beyond them, in the last block, are padding
        ("outputs", NUMBER),
        # address of what is added to them, float32 [outputs]; 0: nothing
        ("bias", NUMBER),
    )


class DraftRun(Descriptor):
    """Rows of x times matrices of codes; see `draft_product.Joined`."""

    __slots__ = ()
    _fields_ = (
        ("taken", NUMBER),
        # how many matrices, and the address of the first: they lie one after the other
        ("count", NUMBER),
        ("matrices", NUMBER),
        # of all matrices together, or of one of both where the first gates the second
        ("blocks", NUMBER),
        ("outputs", NUMBER),
        # SILU or GELU: the result is that of the first times the second; 0: results lie side by side
        ("gate", NUMBER),
        ("rows", NUMBER),
        ("columns", NUMBER),
        ("step", NUMBER),
        # addresses: x [rows, columns] and y [rows, outputs], bfloat16 or float32; what is added to y (0: nothing)
        ("x", NUMBER),
        ("y", NUMBER),
        ("added", NUMBER),
        # bytes of an element of x and y: 2 or 4
        ("itemsize", NUMBER),
        # address of float32 [columns], by which x is multiplied once its mean square is 1; 0: x is taken as it is
        ("norm", NUMBER),
        # the bits of a float32 that is added to the mean square
        ("epsilon", NUMBER),
        # the same for the rows of y, before anything is added to them: address of float32 [outputs] (0: they are taken as they are)
        ("after", NUMBER),
        ("after_epsilon", NUMBER),
        # the bits of a float32: factor of the results, before anything is added to them
        ("times", NUMBER),
        # the bits of a float32: factor of all, once something is added
        ("scale", NUMBER),
        # address of room for x in int8 [columns / step, rows, step], then steps float32 [columns / step, rows, 2], then a row of x
        # or y in float32, and what is added to it
        ("scratch", NUMBER),
        # how many other runs, of as many blocks and as many rows at most, are done in the place of this one (0: this one is), and
        # where their addresses lie
        ("others", NUMBER),
        ("runs", NUMBER),
        # addresses of the kernel that each thread runs, and of GOMP_parallel (0: there is none)
        ("work", NUMBER),
        ("parallel", NUMBER),
        ("threads", NUMBER),
    )


class LevelRun(Descriptor):
    """Queries, keys and values of a draft's nodes: turned by position, kept, and attended with; see `draft_layer.attend`."""

    __slots__ = ()
    _fields_ = (
        ("taken", NUMBER),
        ("nodes", NUMBER),
        ("heads", NUMBER),
        ("kv_heads", NUMBER),
        ("key_size", NUMBER),
        ("value_size", NUMBER),
        # bytes of an element of what is made here and of the cache: 2 (bfloat16) or 4 (float32)
        ("itemsize", NUMBER),
        ("cache_itemsize", NUMBER),
        # address of [nodes, (heads + kv heads) * key size + kv heads * value size]: queries, keys, values; where it is `gated` (1),
        # a gate of as many numbers follows each query
        ("made", NUMBER),
        ("gated", NUMBER),
        # Are there keys and values among them (0: only queries, and the cache holds the others), and are there values (0: each is
        # what its key is before norm and turn)?
        ("keys_made", NUMBER),
        ("values_made", NUMBER),
        # addresses of cosines and sines [nodes, angles], and how many numbers of a query or a key are turned by position: as
        # many, or twice as many where both halves have the same
        ("cosines", NUMBER),
        ("sines", NUMBER),
        ("angles", NUMBER),
        ("turned", NUMBER),
        # the first of those that are turned, and which are turned together: see `head_form.Turning.order`
        ("first", NUMBER),
        ("order", NUMBER),
        # addresses of float32, by which queries and keys are multiplied once their mean square is 1 (0: they are taken as they
        # are): [key size], or where that square is of `all_heads` of a node (1), [heads, key size]
        ("query_norm", NUMBER),
        ("key_norm", NUMBER),
        ("all_heads", NUMBER),
        # the bits of a float32 that is added to the mean square
        ("epsilon", NUMBER),
        # 1: the mean square of each value is made one, once a float32 of these bits is added to it; 0: it is kept as it is
        ("values_normed", NUMBER),
        ("value_epsilon", NUMBER),
        # address of float32 [heads]: one more score for each head, of which no value comes; 0: there is none
        ("sinks", NUMBER),
        # addresses of int64 [nodes]; of tails int64 [nodes, beyond] (`tree.Nodes`)
        ("rows", NUMBER),
        ("slots", NUMBER),
        ("positions", NUMBER),
        ("prefix", NUMBER),
        ("tail", NUMBER),
        ("beyond", NUMBER),
        # tokens that a node sees, its own included (0: all), and the most positions that one has up to its own
        ("window", NUMBER),
        ("longest", NUMBER),
        # addresses of the cache [rows, kv heads, places, size], and how many lines of `size` lie between two rows and two heads
        ("keys", NUMBER),
        ("values", NUMBER),
        # bytes from one value to the next: latent states lie in keys
        ("value_line", NUMBER),
        ("places", NUMBER),
        ("row_lines", NUMBER),
        ("head_lines", NUMBER),
        # the bits of a float32: factor of every score; and where they end up below, 0: anywhere
        ("scaling", NUMBER),
        ("softcap", NUMBER),
        # address of the result [nodes, heads * value size]
        ("out", NUMBER),
    )


coded_matrix, draft_run, level_run = map(reader, (CodedMatrix, DraftRun, LevelRun))
MATRIX_BYTES = ctypes.sizeof(CodedMatrix)

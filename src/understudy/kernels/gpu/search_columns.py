"""The columns of a tree search's arrays, as kernels know them."""

import triton.language as tl

from .. import search_columns as columns

DEPTH = tl.constexpr(columns.DEPTH)
SPINE = tl.constexpr(columns.SPINE)
FOUND = tl.constexpr(columns.FOUND)
CHILDREN = tl.constexpr(columns.CHILDREN)
PARENT = tl.constexpr(columns.PARENT)
THROUGH = tl.constexpr(columns.THROUGH)
ROW = tl.constexpr(columns.ROW)
PLACE = tl.constexpr(columns.PLACE)
FROM = tl.constexpr(columns.FROM)
WHAT = tl.constexpr(columns.WHAT)
DEEP = tl.constexpr(columns.DEEP)
CHAIN = tl.constexpr(columns.CHAIN)
VALID = tl.constexpr(columns.VALID)
BECAME = tl.constexpr(columns.BECAME)

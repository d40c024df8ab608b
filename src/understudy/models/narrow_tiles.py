"""Tiles of fewer rows, for small passes: most of what the stock model computes in a tile of one node is padding.

A node's bits must be those that it has in a tile of TILE rows. That is tried on the model itself, with stand-ins as in
`whole_pass`, and what would show too seldom in a trial is ruled out: torch computes functions such as exp by vectors, and the
numbers that are left over after whole vectors by other means. So every operation whose numbers might depend on that must make whole
vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import xxhash
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..kernels import team
from ..tree import Nodes, TokenTree
from .rehearsal import Rehearsal, stand_in

if TYPE_CHECKING:
    from .target import Target

# rows of such tiles
HEIGHTS = (8, 16)
# passes of so few nodes before it is tried: shorter texts would not win back what that takes
WORTH_TRYING = 8
# numbers in what torch computes by vectors at once, at most: two vectors of 64 bytes of bfloat16
WHOLE = 64
# operations that move numbers, or round each as IEEE 754 says it must be rounded; sums of rows go as long as a row
_PLAIN = """
    add sub rsub mul div neg abs sqrt rsqrt square relu maximum minimum clamp where eq ne lt le gt ge mean sum
    logical_and logical_not bitwise_and to _to_copy type_as float bfloat16 clone copy_ contiguous cat stack pad constant_pad_nd
    repeat view _unsafe_view view_as reshape flatten unflatten t transpose permute movedim swapaxes as_strided alias detach
    resolve_conj resolve_neg slice select narrow split split_with_sizes chunk unbind expand expand_as unsqueeze squeeze index gather
    embedding arange full zeros ones empty new_empty new_zeros empty_like zeros_like ones_like scalar_tensor lift_fresh
"""
PLAIN = frozenset(_PLAIN.split())
# powers that torch takes by such operations alone
EXACT_POWERS = 2, -1, 0.5, -0.5
# products of matrices: torch chooses between several orders of the sum by the number of rows
PRODUCTS = "mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "convolution", "einsum"


class NarrowTiles:
    """The heights below TILE that tiles of a model may have: none until it was tried. `outputs`: those of each Linear."""

    def __init__(self, outputs: Sequence[int]) -> None:
        self.outputs = outputs
        self.heights: tuple[int, ...] = ()
        # small passes that are left until it is tried
        self.left = WORTH_TRYING

    def rows(self, nodes: int, usual: int) -> int:
        """Rows of a tile of so many nodes; `usual` where none of these heights will do."""
        return next((height for height in self.heights if nodes <= height), usual)

    def consider(self, view: Target, nodes: Nodes, usual: int) -> None:
        """Before a pass of `nodes`: try it, where enough small passes have been."""
        if not self.left or len(nodes) > HEIGHTS[-1] or view.cache.recurrent:
            return
        if self.left == 1:
            self.heights = apart(view, self.outputs, HEIGHTS, usual)
        self.left -= 1


@torch.inference_mode()
def apart(view: Target, outputs: Sequence[int], heights: Sequence[int], usual: int) -> tuple[int, ...]:
    """Those of `heights` for which each node has the bits that it has in a tile of `usual` rows, whatever its numbers are."""
    # The last of the outputs are those of the head: one for each token of the vocabulary.
    kinds = min(90, outputs[-1] - 1)
    nodes = Nodes.of(TokenTree.chain([1 + 7 * place % kinds for place in range(usual)]), 0, 0)
    weightless = replace(view, multiply=stand_in(outputs))
    found = []
    try:
        with team.stock_alone():
            expected, usual_whole = _tried(weightless, nodes)
            for height in heights:
                digests, whole = _tried(weightless, nodes[usual - height :])
                if usual_whole and whole and digests == expected[usual - height :]:
                    found.append(height)
    finally:
        view.current.under_way = None
    return tuple(found)


def _tried(view: Target, nodes: Nodes) -> tuple[list[int], bool]:
    """A digest of the logits of each of `nodes`, which fill a tile, and whether all that counts was done by whole vectors."""
    view.current.under_way = rehearsal = Rehearsal(view, nodes)
    rehearsal.padding = 0
    with _Watch() as watch:
        logits = view.model(**rehearsal.inputs()).logits[0]
    # Row by row: logits of all are as large as the plan says, and a copy of them would be as large again.
    return [xxhash.xxh3_64_intdigest(row.contiguous().view(torch.uint8).numpy()) for row in logits], watch.whole


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Looks at all that torch computes within it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.whole = True

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name in PRODUCTS:
            self.whole = False
        elif name not in PLAIN and not (name == "pow" and not isinstance(args[1], Tensor) and args[1] in EXACT_POWERS):
            tensors = made if isinstance(made, tuple | list) else [made]
            self.whole = self.whole and all(_whole(tensor) for tensor in tensors if isinstance(tensor, Tensor))
        return made


def _whole(made: Tensor) -> bool:
    """Were the numbers of `made` computed by whole vectors, whether torch goes through them as one line or row by row?"""
    if not made.is_floating_point():
        return True
    if made.is_contiguous():
        return made.numel() % WHOLE == 0
    return made.shape[-1] % WHOLE == 0 and made.stride(-1) == 1

"""What recurrent layers ask of a device with memory of its own: the project's kernels do it where they serve a layer's shape, and
elsewhere plain torch does."""

from __future__ import annotations

from torch import Tensor

from ..kernels.recurrence import RuleStep, convolve_anywhere, fold_anywhere, recur_anywhere
from ..recurrent import RecurrentShape, RecurrentState
from ..tree import Nodes


class RecurrentWork:
    """The part of a device that recurrent layers ask for; see `devices.Device`."""

    # whether the project's own kernels can be used
    triton: bool

    def walks(self, shape: RecurrentShape) -> bool:
        if not self.triton:
            return False
        # only now: it needs Triton
        from ..kernels.gpu.rule import serves

        return serves(shape)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, state: RecurrentState, nodes: Nodes) -> Tensor:
        if self.triton:
            # only now: it needs Triton
            from ..kernels.gpu.convolution import convolve

            return convolve(x, weight, bias, state, nodes)
        return convolve_anywhere(x, weight, bias, state, nodes)

    def recur(self, step: RuleStep, state: RecurrentState, nodes: Nodes, together: bool) -> Tensor:
        if self.walks(state.shape):
            # only now: it needs Triton
            from ..kernels.gpu.rule import recur

            return recur(step, state, nodes, together)
        return recur_anywhere(step, state, nodes, together)

    def fold(self, state: RecurrentState, row: int, number: int) -> None:
        if self.walks(state.shape):
            # only now: it needs Triton
            from ..kernels.gpu.rule import fold

            fold(state, row, number)
        else:
            fold_anywhere(state, row, number)

"""A layer of the gated delta rule beside its products, as the draft's kernel is told of it (`draft_delta`)."""

from dataclasses import dataclass

from torch import Tensor

from ..recurrent import RecurrentState
from .join_form import Norm


@dataclass(frozen=True)
class DeltaLine:
    """Where in the line of numbers that the products make of a node its parts are, int64: the inputs of the convolution [channels]
    (queries, keys, values), the first number of each head's gate, and what the share of the delta and the decay are made of, [value
    heads] each."""

    channels: Tensor
    gates: Tensor
    betas: Tensor
    decays: Tensor

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return self.channels, self.gates, self.betas, self.decays


@dataclass(frozen=True)
class DeltaForm:
    """A layer of the gated delta rule, beside its products."""

    line: DeltaLine
    # of the convolution [channels, taps], bfloat16 or float32
    weight: Tensor
    # float32 [value heads]: how fast a state decays, and what is added to its argument
    rates: Tensor
    shifts: Tensor
    # of each head's values
    norm: Norm

    def suits(self, state: RecurrentState, columns: int) -> bool:
        """Are its sizes those of `state`, and of lines of so many `columns`?"""
        shape = state.shape
        sizes = tuple(part.numel() for part in self.line.parts)
        wanted = (shape.channels, shape.value_heads, shape.value_heads, shape.value_heads)
        inside = max(int(part.max()) for part in self.line.parts) < columns
        inside &= int(self.line.gates.max()) + shape.value_size <= columns
        inside &= all(part.is_contiguous() for part in (*self.line.parts, self.weight, self.rates, self.shifts))
        taps = tuple(self.weight.shape) == (shape.channels, shape.taps)
        return sizes == wanted and inside and taps and self.norm.weight.numel() == shape.value_size

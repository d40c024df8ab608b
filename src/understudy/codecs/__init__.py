"""Residuals: what must travel, beside the substitute, for a weight to be exact. A codec is one file and one line below.

Decoding gives back every bit, NaN payloads and signed zeros too, as blocks [nb, K, 64] of the weight's dtype."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from ..kernels.eighths_coding import Factors
from ..kernels.exact_operand import Operand
from ..kernels.pack import BLOCK
from ..quantizers import Tensors
from ..registry import build

CODECS: dict[str, str] = {
    "delta": "understudy.codecs.delta:Delta",
    "fp8": "understudy.codecs.fp8:Fp8",
    "w4": "understudy.codecs.w4:W4",
    "raw": "understudy.codecs.raw:Raw",
    "link": "understudy.codecs.link:InSource",
}
# Codecs of weights that are published in a form of their own: these have them whichever codec is chosen, and no others do.
OF_FORMS: dict[str, str] = {"mxfp4": "understudy.codecs.mxfp4:Fours"}


@dataclass(frozen=True, slots=True)
class Encoded:
    """Neighbouring blocks of a weight, as a codec stored them."""

    # uint8 [any]
    data: Tensor
    # blocks, and columns of each
    count: int
    columns: int
    # the weight's
    dtype: torch.dtype
    # that of the same blocks; empty where the codec needs none
    substitute: Tensors
    # where several parts of them lie in `data`, as `Codec.places` says; None: they are one part
    places: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """That of the blocks."""
        return self.count, self.columns, BLOCK


class Codec(Protocol):
    """Turns blocks of a weight into bytes, given the substitute of the same blocks, and back."""

    name: str  # the spec that builds it again
    needs_substitute: bool  # to decode
    in_place: bool  # decoding is a view of the data: it takes no room
    linked: bool  # the data are rows of the source as they lie there: a Store points to them and keeps no copy
    needs_triton: bool  # to decode on a device with memory of its own; else `decode` is torch alone and runs anywhere
    form: str  # in which weights must be published that it stores; `OTHERWISE` stores the others. Empty: it stores any

    def applies(self, dtype: torch.dtype, quantizer: str) -> bool:
        """Whether weights of this dtype with substitutes of this quantiser can be encoded; `raw` is taken where not."""

    def bits(self, dtype: torch.dtype, quantizer: str) -> float:
        """About how many bits a weight with a substitute of this quantiser takes: to say how large a Store will be."""

    def encode(self, blocks: Tensor, substitute: Tensors, factors: Factors | None = None) -> Tensor:
        """uint8 bytes, any number of them. `factors`: those of weights that are published with some; None: all are 1."""

    def decode(self, part: Encoded, out: Tensor | None = None) -> Tensor:
        """The blocks [count, columns, 64] that were encoded: in `out` if given, else new or a view of the data."""

    def places(self, starts: Sequence[int], counts: Sequence[int], where: str) -> Tensor | None:
        """What lets `decode_on_device` decode parts of `counts` neighbouring blocks in one go, whose bytes begin at `starts`, in
        the memory `where`; None: it decodes one part at a time."""

    def decode_on_device(self, part: Encoded, out: Tensor | None = None) -> Tensor:
        """As `decode`, where all tensors lie in a device's own memory. The host reads nothing of them."""

    def operand(self, part: Encoded, out: Tensor | None = None) -> Operand:
        """Those blocks, to be multiplied (where `kernels.exact_product` applies). In `out`: what must be made whole."""


# stores every weight there is
FALLBACK = "raw"
# stores weights that are published in another form than a codec asks for
OTHERWISE = "delta"


def copying() -> list[str]:
    """Names of the codecs that may be chosen where none was asked for: all but those that need the source to stay."""
    return [name for name in CODECS if not codec(name).linked]


def suited(spec: str, dtype: torch.dtype, quantizer: str) -> Codec:
    """The codec that `spec` names if it applies to such weights, else `FALLBACK`."""
    wanted = codec(spec)
    return wanted if wanted.applies(dtype, quantizer) else codec(FALLBACK)


def candidates(dtype: torch.dtype, quantizer: str, form: str = "") -> list[Codec]:
    """Those of `copying` that apply to such weights, published in `form`, the one that takes the fewest bits first."""
    able = [one for one in map(codec, copying()) if one.applies(dtype, quantizer) and one.form in ("", form)]
    return sorted(able, key=lambda one: one.bits(dtype, quantizer))


@cache
def codec(spec: str) -> Codec:
    """The codec that `spec` names, like "raw"."""
    made: Codec = build("codec", {**CODECS, **OF_FORMS}, spec)
    return made

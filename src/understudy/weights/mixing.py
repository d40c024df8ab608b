"""The errors that a mix weighs: what each choice of bits does to a Linear's output, estimated on a few blocks of its rows.

Without a text all inputs count alike, and nothing but weights is needed; `prepare --calibrate` measures what comes in."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.pack import BLOCK, blocks_of
from ..quantizers import fitting
from ..quantizers.mixed import CHOICES, Errors, foretold, mixed
from .checkpoint import Checkpoint
from .layout import LinearSpec, ModelLayout
from .recipe import Recipe

Moments = Sequence[Tensor]  # for each Linear, in the order of a pass: the mean square of each of its inputs
SAMPLED = 4  # blocks of 64 rows of each weight


def quantizers_of(layout: ModelLayout, recipe: Recipe, errors: Sequence[Errors] | None = None) -> list[str]:
    """The spec of a quantiser for each Linear. What a mix chooses depends on `errors`; None: on those of usual weights."""
    shapes = [spec.shape for spec in layout.linears]
    mix = mixed(recipe.quantizer)
    if mix is None or errors is None:
        return foretold(recipe.quantizer, shapes)
    return mix.choose(shapes, errors)


def errors_of(checkpoint: Checkpoint, spec: LinearSpec, inputs: Tensor | None) -> Errors:
    """The relative squared error of the output, by quantiser. `inputs` [K]: the mean square of each input; None: all alike."""
    count = blocks_of(spec.shape[0])
    places = sorted({(2 * i + 1) * count // (2 * SAMPLED) for i in range(SAMPLED)})
    wrong, all_of_it = dict.fromkeys(CHOICES, 0.0), 0.0
    for place in places:
        rows = checkpoint.read_rows(spec.weight, place * BLOCK, min((place + 1) * BLOCK, spec.shape[0]))
        exact = torch.nan_to_num(rows.float(), 0.0, 0.0, 0.0)
        all_of_it += _energy(exact, inputs)
        for name in CHOICES:
            maker = fitting(name, *spec.shape)
            copied = maker.dequantize(maker.quantize(rows), (rows.shape[0], rows.shape[1]))
            wrong[name] += _energy(torch.nan_to_num(copied, 0.0, 0.0, 0.0) - exact, inputs)
    return {name: error / max(all_of_it, 1e-30) for name, error in wrong.items()}


def _energy(weight: Tensor, inputs: Tensor | None) -> float:
    """The mean square of what `weight` [n, K] makes of inputs that do not depend on each other."""
    squares = weight.double().square().sum(0)
    return float(squares.sum() if inputs is None else squares @ inputs.double())

"""The errors that a mix weighs: what each choice of bits does to a Linear's output, estimated on a few of its blocks.

Without a text all inputs count alike and only weights are read; a text says how large each of them is."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.pack import BLOCK, blocks_of
from ..quantizers import fitting
from ..quantizers.inputs import Inputs
from ..quantizers.mixed import CHOICES, Errors, foretold, mixed
from .checkpoint import Checkpoint
from .layout import LinearSpec, ModelLayout
from .recipe import Recipe

# For each Linear, in the order of a pass: the second moments of its inputs; None where they say nothing.
Moments = Sequence[Inputs | None]
# Blocks of 64 rows of each weight that are read.
SAMPLED = 4


def quantizers_of(layout: ModelLayout, recipe: Recipe, errors: Sequence[Errors] | None = None) -> list[str]:
    """The quantiser of each Linear, the head's last. A mix chooses by `errors`; None: by those of usual weights."""
    shapes = [spec.shape for spec in layout.linears]
    mix = mixed(recipe.quantizer)
    if mix is not None and errors is not None:
        return mix.choose(shapes, errors)
    found = foretold(recipe.quantizer, shapes)
    if recipe.head and fitting(recipe.head, *shapes[-1]).name == recipe.head:
        found[-1] = recipe.head
    return found


def errors_of(checkpoint: Checkpoint, spec: LinearSpec, inputs: Inputs | None) -> Errors:
    """The relative squared error of a Linear's output, by quantiser.

    `inputs`: their second moments; None: all count alike. Raises CheckpointError for what cannot be read."""
    count = blocks_of(spec.shape[0])
    places = sorted({(2 * i + 1) * count // (2 * SAMPLED) for i in range(SAMPLED)})
    wrong = dict.fromkeys(CHOICES, 0.0)
    energy = 0.0
    squares = None if inputs is None else inputs.squares
    for place in places:
        rows = checkpoint.weight_rows(spec, place * BLOCK, min((place + 1) * BLOCK, spec.shape[0]))
        exact = torch.nan_to_num(rows.float(), 0.0, 0.0, 0.0)
        energy += _energy(exact, squares)
        for name in CHOICES:
            quantizer = fitting(name, *spec.shape)
            copy = quantizer.dequantize(quantizer.quantize(rows, inputs), (rows.shape[0], rows.shape[1]))
            wrong[name] += _energy(torch.nan_to_num(copy, 0.0, 0.0, 0.0) - exact, squares)
    return {name: error / max(energy, 1e-30) for name, error in wrong.items()}


def _energy(weight: Tensor, squares: Tensor | None) -> float:
    """The mean square of the output of `weight` [n, K] for independent inputs with these mean squares, [K]."""
    found = weight.double().square().sum(0)
    return float(found.sum() if squares is None else found @ squares.double())

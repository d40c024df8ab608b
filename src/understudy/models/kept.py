"""Weights that do not stream: both views hold them whole and exact, in the type in which transformers holds them.

They are norms, biases, buffers, small weights outside any Linear, and Linears that decide (routers, gates, decays) and would
decide otherwise if the draft only had a copy of few bits."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import torch
from torch import nn

from ..kernels.pack import BLOCK
from ..seeds import seeded

# Numbers that one weight of a decoder block may have and not stream: it lies in fast memory beside the substitute.
MOST_KEPT = 5 << 20
# What a parameter says of itself that is a stack of small matrices, all of which multiply every token.
HELD = "understudy_held"
# A Linear that decides has fewer outputs than a block, and at least so many times as many inputs, or fewer than so many.
NARROW = 8
# What routers add to the scores of their experts.
SCORE_BIAS = "e_score_correction_bias"
# What a router has that is a small network, all of which decides (ZAYA).
BALANCE = "balancing_biases"
# Where a class of transformers lists what it holds in float32: in any half precision, and in float16 alone.
_LISTS = ("_keep_in_fp32_modules_strict", "_keep_in_fp32_modules")
# What a forward of its own raises when it is given a small weight that it was not written for.
_STUMBLES = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError, ArithmeticError)


def streams(module: nn.Module, in_float32: bool) -> bool:
    """Does the weight of `module` stream? That of a Linear does, unless it decides or is kept `in_float32`."""
    if not is_linear(module):
        return False
    outputs, inputs = module.weight.shape  # type: ignore[misc]
    decides = outputs < BLOCK and (inputs < NARROW or inputs >= NARROW * outputs)
    return not decides and not in_float32


def routers(model: nn.Module) -> set[nn.Module]:
    """The Linears of `model` that choose experts and have as many outputs as there are, however many: those beside a bias that is
    added to the scores of all experts before some are chosen; and all Linears of a router that is a network."""
    found: set[nn.Module] = set()
    for module in model.modules():
        bias = getattr(module, SCORE_BIAS, None)
        if isinstance(bias, torch.Tensor):
            found |= {m for m in module.children() if isinstance(m, nn.Linear) and m.out_features == bias.numel()}
        if isinstance(getattr(module, BALANCE, None), torch.Tensor):
            found |= {m for m in module.modules() if isinstance(m, nn.Linear)}
    return found


def is_linear(module: nn.Module) -> bool:
    """Is `module` an nn.Linear, or of a class made from it whose own forward computes the same? That is tried on a few numbers."""
    if not isinstance(module, nn.Linear):
        return False
    if type(module).forward is nn.Linear.forward:
        return True
    small, random = copy.copy(module), seeded(0)
    inputs, outputs = 6, 4
    weight = torch.randn(outputs, inputs, generator=random)
    bias = None if module.bias is None else torch.randn(outputs, generator=random)
    given = {"weight": weight, "bias": bias}
    small.__dict__["_parameters"] = {name: None if t is None else nn.Parameter(t, False) for name, t in given.items()}
    small.in_features, small.out_features = inputs, outputs
    x = torch.randn(1, 3, inputs, generator=random)
    try:
        found = small(x)
    except _STUMBLES:
        return False
    expected = nn.functional.linear(x, weight, bias)
    return isinstance(found, torch.Tensor) and found.shape == expected.shape and torch.allclose(found, expected, atol=1e-5)


def may_be_kept(parameter: nn.Parameter) -> bool:
    """May a weight of a decoder block be kept? Vectors may; so may small matrices and convolutions of single channels, but no
    stacks of matrices such as experts have, unless whoever takes a stock module's place says so."""
    if getattr(parameter, HELD, False):
        return parameter.numel() <= MOST_KEPT
    return parameter.dim() < 2 or (parameter.numel() <= MOST_KEPT and sum(size > 1 for size in parameter.shape) < 3)


def float32_names(model: nn.Module, dtype: torch.dtype) -> Callable[[str], bool]:
    """Tells for the name of a parameter or buffer of the stock `model` whether transformers holds it in float32 when the model
    computes in `dtype`."""
    always, in_float16 = (getattr(model, name, None) or () for name in _LISTS)
    listed = [*always, *(in_float16 if dtype == torch.float16 else ())] if dtype != torch.float32 else []
    pattern = re.compile("|".join(name.replace("*", ".*") for name in listed) or r"(?!)")
    return lambda name: pattern.search(name) is not None


def is_table(buffer: torch.Tensor) -> bool:
    """Is it a table of whole numbers, with several rows? What has one counts positions."""
    return buffer.dim() == 2 and len(buffer) > 1 and whole_numbers(buffer.dtype)


def whole_numbers(dtype: torch.dtype) -> bool:
    """Are numbers of this type whole?"""
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)

"""Checkpoints of GPTQ and AWQ: which of them are read, and how the tensors of a weight are.

What transformers multiplies by, where no kernel of its own does, is a code less its zero point times its scale. The modules that it
makes hold scales in float16. Those of AWQ take them to the model's type and multiply in that; those of GPTQ multiply in float16,
and take the weight to the model's type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from .packed import Packed
from .shards import TensorInfo
from .words import AWQ, GPTQ

ZEROS, GROUPS = ".qzeros", ".g_idx"
TYPES = (torch.float16, torch.bfloat16)
_SCALE_TYPES = (torch.float16, torch.bfloat16, torch.float32)
# How GPTQ's zero points are published in each of its formats: by how much less than they are.
_LESS = {"gptq": 1, "gptq_v2": 0}
# Models whose activations AWQ scales too, as transformers has them.
_SCALED = ("starcoder2", "RefinedWebModel", "falcon", "mpt", "gptj", "gpt_neox", "gpt_bigcode", "bloom")


def unread(kind: str, settings: Mapping[str, Any], dtype: torch.dtype) -> str:
    """What `settings` say that is not read, of a model of this `kind` whose weights are of `dtype`; empty: nothing."""
    method, bits = settings.get("quant_method"), settings.get("bits", settings.get("w_bit", 4))
    if bits != 4:
        return f"bits is {bits}"
    if dtype not in TYPES:
        return f"its type is {str(dtype).removeprefix('torch.')}"
    if method == AWQ:
        version = str(settings.get("version") or settings.get("format") or "gemm").lower()
        if version != "gemm" or settings.get("backend") == "llm-awq":
            return f"its version is {version if version != 'gemm' else 'llm-awq'}"
        if settings.get("zero_point", True) is not True:
            return "it has no zero points"
        return "its activations are scaled" if kind in _SCALED else ""
    stored = _format(settings)
    if stored not in _LESS or settings.get("is_marlin_format"):
        return f"its format is {stored if stored not in _LESS else 'marlin'}"
    dynamic = settings.get("dynamic")
    if isinstance(dynamic, Mapping) and not all(str(name).startswith("-:") for name in dynamic):
        return "some of its weights have settings of their own (dynamic)"
    return "its weights are rotated" if settings.get("rotation") else ""


def in_words(settings: Mapping[str, Any]) -> str:
    """How weights are published in this way, for people."""
    size = settings.get("group_size", settings.get("q_group_size"))
    return str(settings.get("quant_method")).upper() + (f" in groups of {size}" if isinstance(size, int) and size > 0 else "")


def packed(codes: TensorInfo, scales: TensorInfo, others: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> Packed:
    """How the weight is published that is made of `codes`, `scales` and `others`. config: its settings, and `dtype`, the weight's
    type."""
    settings, dtype = config["settings"], config["dtype"]
    order = str(settings["quant_method"]).lower()
    found = Packed(codes, scales, order=order, zeros=others.get(ZEROS))
    if found.zeros is None:
        name = codes.name.removesuffix(".qweight") + ZEROS
        return replace(found, order="", fault=f"has no zero points: {name!r} is missing. Get the model again")
    odd = f"is {list(codes.shape)} with scales {list(scales.shape)} and zero points {list(found.zeros.shape)}, which do not fit"
    if any(len(each.shape) != 2 or 0 in each.shape for each in (codes, scales, found.zeros)):
        return replace(found, order="", fault=f"{odd}. Get the model again")
    groups, outputs = scales.shape
    columns = codes.shape[0] * (8 if order == GPTQ else 1)
    wide = outputs if order == GPTQ else outputs // 8
    fits = codes.shape[1] == wide and outputs % 8 == 0 and columns % 2 == 0 and found.zeros.shape == (groups, outputs // 8)
    if not fits or columns % groups or scales.dtype not in _SCALE_TYPES or found.zeros.dtype != torch.int32:
        return replace(found, order="", fault=f"{odd}. Get the model again")
    found = replace(found, block=(1, columns // groups), **rounding(settings, dtype))
    if order == AWQ:
        return found
    found = replace(found, more=_LESS[_format(settings)], groups=others.get(GROUPS))
    if found.groups is not None and (found.groups.shape != (columns,) or found.groups.dtype != torch.int32):
        what = f"has groups {list(found.groups.shape)} of {found.groups.kind}, where {[columns]} of int32 are needed"
        return replace(found, groups=None, fault=f"{what}. Get the model again")
    return found


def rounding(settings: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """What a `Packed` is told of the types in which weights of `dtype` are made, and of the order of their columns."""
    if str(settings["quant_method"]).lower() == AWQ:
        return {"scale_types": (torch.float16, dtype)}
    on_the_way = () if dtype == torch.float16 else (torch.float16,)
    return {"scale_types": (torch.float16,), "on_the_way": on_the_way, "scattered": bool(settings.get("desc_act"))}


def _format(settings: Mapping[str, Any]) -> str:
    return str(settings.get("checkpoint_format") or settings.get("format") or "gptq").lower()

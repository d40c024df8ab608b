"""How a checkpoint is published: which of its tensors are codes and scales of which weight, by its config.json.

What is read is what transformers makes weights of with `dequantize=True`: FP8 (`fp8`), MXFP4 (`mxfp4`), and of compressed-tensors
FP8 and codes of four bits; and GPTQ and AWQ in four bits (`by_columns`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from . import by_columns
from .layout import ModelLayout
from .packed import FP8, INT4, MXFP4, Packed
from .shards import TensorInfo
from .words import AWQ, GPTQ

COMPRESSED = "compressed-tensors"
_SETTINGS, _METHOD = "quantization_config", "quant_method"
_WEIGHT, _BLOCKS, _SCALES, _ZEROS, _QWEIGHT = ".weight", "_blocks", "_scales", ".weight_zero_point", ".qweight"
# What configs call MXFP4 beside FP8, and what is in the names of the weights that it is said of.
FP4, _EXPERTS = "fp4", ".experts."
# Bytes of a block in MXFP4, of two codes each.
_PAIRS = 16
_CODES = (torch.float8_e4m3fn, torch.float8_e5m2)
_SCALE_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.float8_e8m0fnu)


@dataclass(frozen=True)
class _Rule:
    """The tensors X + `codes`, of one of `kinds`, and the first of X + `scales` that there is are the weight X + `weight`."""

    codes: str
    kinds: tuple[torch.dtype, ...]
    scales: tuple[str, ...]
    weight: str
    # Makes a Packed of both, of those beside them, and of `settings` and `dtype` of a config.
    make: Callable[[TensorInfo, TensorInfo, Mapping[str, TensorInfo], Mapping[str, Any]], Packed]
    # What may lie beside them.
    beside: tuple[str, ...] = ()


def form_of(config: Mapping[str, Any]) -> str:
    """FP8, MXFP4, COMPRESSED, GPTQ or AWQ where a config.json says that the weights are published so, in a way that is read; else
    empty."""
    settings = settings_of(config)
    method = str(settings.get(_METHOD, "")).lower()
    if method == COMPRESSED and (dtype_of(config) not in by_columns.TYPES or not all(map(_readable, _groups(settings)))):
        return ""
    if method in (GPTQ, AWQ) and unread(config):
        return ""
    return method if method in _RULES and not any(settings.get(name) for name in _FURTHER) else ""


def transposed(config: Mapping[str, Any]) -> bool:
    """Are the weights published as GPTQ or AWQ have them?"""
    return form_of(config) in (GPTQ, AWQ)


def unread(config: Mapping[str, Any]) -> str:
    """What of GPTQ or AWQ a config.json asks for that is not read; empty: nothing."""
    settings = settings_of(config)
    if str(settings.get(_METHOD, "")).lower() not in (GPTQ, AWQ):
        return ""
    return by_columns.unread(str(config.get("model_type")), settings, dtype_of(config))


# What compressed-tensors may do besides, and is not read; and the formats of its FP8.
_FURTHER, _FLOATS = ("kv_cache_scheme", "transform_config"), ("float-quantized", "naive-quantized")


def _groups(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What compressed-tensors says of each group of weights; of none at all where that is not known."""
    groups = settings.get("config_groups")
    found = list(groups.values()) if isinstance(groups, Mapping) else []
    # one that names no format has that of all
    usual = settings.get("format")
    return [{**each, "format": each.get("format") or usual} if isinstance(each, Mapping) else {} for each in found] or [{}]


def _readable(group: Mapping[str, Any]) -> bool:
    """Are these weights FP8, or codes of four bits, eight in an int32?"""
    own = group.get("weights")
    if not isinstance(own, Mapping) or own.get("actorder") not in (None, "weight", "static"):
        return False
    if own.get("strategy") not in ("tensor", "channel", "group"):
        return False
    kind = own.get("type"), own.get("num_bits")
    # zero points are packed where there is one for each scale of a row
    if own.get("symmetric") is not True and (kind != ("int", 4) or own["strategy"] == "tensor"):
        return False
    how = group.get("format")
    return (kind == ("float", 8) and how in _FLOATS) or (kind == ("int", 4) and how == "pack-quantized")


def settings_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a config.json, or that of the text model in it, says of how its weights are quantised; empty: nothing."""
    text = config.get("text_config")
    places = (config, text if isinstance(text, Mapping) else {})
    return next((found for place in places if isinstance(found := place.get(_SETTINGS), Mapping) and found), {})


def in_words(config: Mapping[str, Any]) -> str:
    """How the weights are published by a config.json, for people; empty: as they are."""
    form, settings = form_of(config), settings_of(config)
    if form in (GPTQ, AWQ):
        return by_columns.in_words(settings)
    if form == COMPRESSED:
        return " and ".join(dict.fromkeys(map(_group_in_words, _groups(settings))))
    block, fours = settings.get("weight_block_size"), " with experts in MXFP4" if _experts_in_fp4(config) else ""
    blocks = f" in blocks of {block[0]} x {block[1]}" if form == FP8 and isinstance(block, list) and len(block) == 2 else ""
    return form.upper() + blocks + fours


def _group_in_words(group: Mapping[str, Any]) -> str:
    own = group["weights"]
    size = f" in groups of {own['group_size']}" if own.get("group_size") else ""
    return (FP8 if own["type"] == "float" else INT4).upper() + size


def dtype_of(config: Mapping[str, Any]) -> torch.dtype:
    """The type of the weights that codes are made to: the one that a config.json names, else bfloat16."""
    text = config.get("text_config")
    places = (config, text if isinstance(text, Mapping) else {})
    named = next((str(place[key]) for place in places for key in ("dtype", "torch_dtype") if place.get(key)), "")
    found = getattr(torch, named.removeprefix("torch."), None)
    return found if found in (torch.float16, torch.float32) else torch.bfloat16


def unpacked(config: Mapping[str, Any], stored: Mapping[str, TensorInfo]) -> Mapping[str, TensorInfo]:
    """The tensors of the files, `stored`, as the model of a config.json has them: one weight in the place of codes and scales."""
    rules = _RULES.get(form_of(config), ())
    if not rules:
        return stored
    dtype = dtype_of(config)
    known = {"settings": settings_of(config), "dtype": dtype}
    found: dict[str, TensorInfo] = {}
    beside: set[str] = set()
    for info in stored.values():
        rule = next((rule for rule in rules if info.name.endswith(rule.codes) and info.dtype in rule.kinds), None)
        if rule is None:
            found[info.name] = info
            continue
        path = info.name.removesuffix(rule.codes)
        scales = next((stored[path + end] for end in rule.scales if path + end in stored), None)
        beside |= {path + end for end in rule.beside} | ({scales.name} if scales is not None else set())
        if scales is None:
            fault = f"has no scales: {path + rule.scales[0]!r} is missing. Get the model again"
            packed = Packed(info, info, fault=fault)
        else:
            others = {end: stored[path + end] for end in rule.beside if path + end in stored}
            packed = rule.make(info, scales, others, known)
        name = path + rule.weight
        shape = (*packed.rows, packed.columns) if len(info.shape) > 1 else info.shape
        found[name] = TensorInfo(name, dtype, shape, info.file, info.offset, math.prod(shape) * dtype.itemsize, packed=packed)
    return {name: info for name, info in found.items() if name not in beside}


def foretold(info: TensorInfo, shape: tuple[int, ...]) -> TensorInfo:
    """The matrices [experts, out, in] of this `shape`, of which `info` is foretold, as they are published in MXFP4: nothing of them
    can be read."""
    *rows, columns = shape
    groups = (*rows, columns // (2 * _PAIRS))
    codes = replace(info, name=info.name + _BLOCKS, dtype=torch.uint8, shape=(*groups, _PAIRS), nbytes=math.prod(groups) * _PAIRS)
    scales = replace(codes, name=info.name + _SCALES, shape=groups, nbytes=math.prod(groups))
    return replace(info, shape=shape, packed=_mxfp4(codes, scales))


def foretold_codes(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], layout: ModelLayout) -> dict[str, TensorInfo]:
    """Those of foretold `tensors` that are published in FP8 or four bits by a config.json, as such: what Linears multiply by, but
    for the head and those that it says stay as they are. Nothing of them can be read."""
    form, settings = form_of(config), settings_of(config)
    kinds = {FP8: {"float"}, GPTQ: {"int"}, AWQ: {"int"}}.get(form, set())
    if form == COMPRESSED:
        kinds = {str(group["weights"]["type"]) for group in _groups(settings)}
    if len(kinds) != 1:
        return {}
    left = [str(name).removeprefix("re:.*") for name in settings.get("modules_to_not_convert") or settings.get("ignore") or ()]
    infos = [tensors[name] for spec in layout.linears[:-1] for name in spec.tensors if not any(each in name for each in left)]
    more = by_columns.rounding(settings, dtype_of(config)) if form in (GPTQ, AWQ) else {}
    fours = {info.name for info in infos if _experts_in_fp4(config) and _EXPERTS in info.name}
    made = ((info, _codes(info, kinds == {"float"})) for info in infos if info.name not in fours)
    found = {info.name: replace(info, packed=Packed(codes, codes, **more)) for info, codes in made}
    return found | {name: foretold(tensors[name], tensors[name].shape) for name in fours}


def _experts_in_fp4(config: Mapping[str, Any]) -> bool:
    """Does a config.json say that experts are published in MXFP4 beside what is in FP8?"""
    return form_of(config) == FP8 and FP4 in (config.get("expert_dtype"), settings_of(config).get("expert_dtype"))


def _codes(info: TensorInfo, wide: bool) -> TensorInfo:
    """Codes of a foretold weight: a byte each if `wide`, else eight in a word."""
    if wide:
        return replace(info, dtype=torch.float8_e4m3fn, nbytes=math.prod(info.shape))
    return replace(info, dtype=torch.int32, shape=(*info.shape[:-1], info.shape[-1] // 8), nbytes=math.prod(info.shape) // 2)


def _mxfp4(codes: TensorInfo, scales: TensorInfo, *_: Any) -> Packed:
    if len(codes.shape) < 3 or codes.shape[-1] != _PAIRS:
        what = f"is {list(codes.shape)}, where blocks of {_PAIRS} bytes are needed"
        return Packed(codes, scales, fault=f"{what}. Get the model again")
    if scales.shape != codes.shape[:-1] or scales.dtype != torch.uint8:
        what = f"has scales {list(scales.shape)} of {scales.kind}, where {list(codes.shape[:-1])} of uint8 are needed"
        return Packed(codes, scales, fault=f"{what}. Get the model again")
    return Packed(codes, scales, (1, 2 * _PAIRS))


def _fp4(codes: TensorInfo, scales: TensorInfo, *_: Any) -> Packed:
    """MXFP4 beside FP8, as experts may be published: blocks of 16 bytes stand side by side in a row."""
    groups = (*codes.shape[:-1], codes.shape[-1] // _PAIRS)
    if codes.shape[-1] % _PAIRS or scales.dtype not in (torch.uint8, torch.float8_e8m0fnu):
        what = f"is {list(codes.shape)} with scales of {scales.kind}, where exponents for each {_PAIRS} bytes are needed"
        return Packed(codes, scales, fault=f"{what}. Get the model again")
    blocks = replace(codes, dtype=torch.uint8, shape=(*groups, _PAIRS))
    return _mxfp4(blocks, replace(scales, dtype=torch.uint8))


def _fp8(codes: TensorInfo, scales: TensorInfo, _: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> Packed:
    wanted = config["settings"].get("weight_block_size")
    found = Packed(codes, scales)
    # of matrices that are stacked, each has scales of its own
    stack, matrix = codes.shape[:-2], codes.shape[-2:]
    shape = scales.shape[-2:] if len(scales.shape) == len(codes.shape) > 1 else (1, 1)
    odd = f"is {list(codes.shape)} with scales {list(scales.shape)} of {scales.kind}, which do not fit. Get the model again"
    whole = math.prod(scales.shape) == math.prod(stack) * math.prod(shape)
    if len(codes.shape) not in (2, 3) or not whole or scales.dtype not in _SCALE_TYPES or 0 in shape:
        return replace(found, fault=odd)
    sizes = wanted if isinstance(wanted, list) and len(wanted) == 2 else (None, None)
    block = []
    for length, count, size in zip(matrix, shape, sizes, strict=True):
        even = length // count if length % count == 0 else None
        # As published: blocks of the config's size, the last one cut off. transformers takes even ones.
        cut = size if isinstance(size, int) and size > 0 and -(-length // size) == count else None
        if count > 1 and even and cut and even != cut:
            why = f"in blocks of {cut}, and transformers would take blocks of {even}: this is not supported"
            return replace(found, fault=f"is {list(codes.shape)} {why}")
        if (chosen := even or cut) is None:
            return replace(found, fault=odd)
        block.append(chosen)
    if stack and matrix[0] % block[0]:
        # rows of all matrices are counted through
        what = f"is {list(codes.shape)} in blocks of {block[0]} rows, of which the last of each matrix is cut off"
        return replace(found, fault=f"{what}: this is not supported")
    return replace(found, block=(block[0], block[1]))


def _compressed(
    codes: TensorInfo, scales: TensorInfo, others: Mapping[str, TensorInfo], config: Mapping[str, Any]
) -> Packed:
    found = Packed(codes, scales)
    # in whose own type compressed-tensors multiplies, with the same bits
    if scales.dtype not in (torch.float32, config["dtype"]):
        own = str(config["dtype"]).removeprefix("torch.")
        return replace(found, fault=f"has scales of {scales.kind}, where {own} or float32 is needed: this is not supported")
    if found.form == FP8:
        return _fp8(codes, scales, {}, {"settings": {}})
    shape: Sequence[int] = scales.shape
    if len(codes.shape) != 2 or len(shape) != 2 or shape[0] != codes.shape[0] or 0 in shape or found.columns % shape[1]:
        return replace(found, fault=f"is {list(codes.shape)} with scales {list(shape)}, which do not fit. Get the model again")
    found = replace(found, block=(1, found.columns // shape[1]), zeros=others.get(_ZEROS))
    if found.zeros is None:
        name = codes.name.removesuffix("_packed").removesuffix(_WEIGHT) + _ZEROS
        kinds = [group["weights"].get("symmetric") for group in _groups(config["settings"]) if group["weights"]["type"] == "int"]
        # one that is left out would be taken for the usual one; which group a weight is of is not known
        missing = kinds and all(symmetric is False for symmetric in kinds)
        return replace(found, fault=f"has no zero points: {name!r} is missing. Get the model again") if missing else found
    if all(group["weights"].get("symmetric") is True for group in _groups(config["settings"])):
        return replace(found, zeros=None, fault="has zero points, and config.json says that it has none. Get the model again")
    if found.zeros.dtype != torch.int32 or found.zeros.shape != (-(-shape[0] // 8), shape[1]):
        what = f"has zero points {list(found.zeros.shape)} of {found.zeros.kind}, which do not fit"
        return replace(found, zeros=None, fault=f"{what}. Get the model again")
    return found


_RULES: dict[str, tuple[_Rule, ...]] = {
    FP8: (
        _Rule(
            _WEIGHT, _CODES, (".weight_scale_inv", ".scale", ".qscale_weight"), _WEIGHT, _fp8, (".activation_scale", ".input_scale")
        ),
        _Rule(_WEIGHT, (torch.int8,), (".weight_scale_inv", ".scale"), _WEIGHT, _fp4),
    ),
    MXFP4: (_Rule(_BLOCKS, (torch.uint8,), (_SCALES,), "", _mxfp4),),
    COMPRESSED: (
        _Rule(_WEIGHT, _CODES, (".weight_scale",), _WEIGHT, _compressed, (".input_scale",)),
        _Rule(".weight_packed", (torch.int32,), (".weight_scale",), _WEIGHT, _compressed, (".weight_shape", _ZEROS)),
    ),
    GPTQ: (_Rule(_QWEIGHT, (torch.int32,), (".scales",), _WEIGHT, by_columns.packed, (by_columns.ZEROS, by_columns.GROUPS)),),
    AWQ: (_Rule(_QWEIGHT, (torch.int32,), (".scales",), _WEIGHT, by_columns.packed, (by_columns.ZEROS, by_columns.GROUPS)),),
}

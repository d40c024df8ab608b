"""How a checkpoint is published: which of its tensors are codes and scales of which weight, by its config.json.

What is read is what transformers makes weights of with `dequantize=True`: FP8 (`fp8`), MXFP4 (`mxfp4`), and of compressed-tensors
FP8 and symmetric codes of four bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .layout import ModelLayout
from .packed import FP8, INT4, MXFP4, Packed
from .shards import TensorInfo

COMPRESSED = "compressed-tensors"
_SETTINGS, _METHOD = "quantization_config", "quant_method"
_WEIGHT, _BLOCKS, _SCALES = ".weight", "_blocks", "_scales"
# Bytes of a block in MXFP4, of two codes each.
_PAIRS = 16
_CODES = (torch.float8_e4m3fn, torch.float8_e5m2)
_SCALE_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.float8_e8m0fnu)
# Those in whose own type compressed-tensors multiplies, with the same bits.
_COMPRESSED_SCALES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class _Rule:
    """The tensors X + `codes`, of one of `kinds`, and the first of X + `scales` that there is are the weight X + `weight`."""

    codes: str
    kinds: tuple[torch.dtype, ...]
    scales: tuple[str, ...]
    weight: str
    # Makes a Packed of both and the config's block.
    make: Callable[[TensorInfo, TensorInfo, Any], Packed]
    # What may lie beside them, and no weight depends on.
    beside: tuple[str, ...] = ()


def form_of(config: Mapping[str, Any]) -> str:
    """FP8, MXFP4 or COMPRESSED where a config.json says that the weights are published so, in a way that is read; else empty."""
    settings = settings_of(config)
    method = str(settings.get(_METHOD, "")).lower()
    if method == COMPRESSED and (dtype_of(config) != torch.bfloat16 or not all(map(_readable, _groups(settings)))):
        return ""
    return method if method in _RULES and not any(settings.get(name) for name in _FURTHER) else ""


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
    """Are these weights FP8, or symmetric codes of four bits, eight in an int32?"""
    own = group.get("weights")
    if not isinstance(own, Mapping) or own.get("symmetric") is not True or own.get("actorder") not in (None, "weight", "static"):
        return False
    if own.get("strategy") not in ("tensor", "channel", "group"):
        return False
    kind = own.get("type"), own.get("num_bits")
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
    if form == COMPRESSED:
        return " and ".join(dict.fromkeys(map(_group_in_words, _groups(settings))))
    block = settings.get("weight_block_size")
    blocks = f" in blocks of {block[0]} x {block[1]}" if form == FP8 and isinstance(block, list) and len(block) == 2 else ""
    return form.upper() + blocks


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
    dtype, wanted = dtype_of(config), settings_of(config).get("weight_block_size")
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
            packed = rule.make(info, scales, wanted)
        name, rows = path + rule.weight, info.shape[:-2] if packed.form == MXFP4 else info.shape[:-1]
        shape = (*rows, packed.columns) if len(info.shape) > 1 else info.shape
        found[name] = TensorInfo(name, dtype, shape, info.file, info.offset, math.prod(shape) * dtype.itemsize, packed=packed)
    return {name: info for name, info in found.items() if name not in beside}


def foretold(info: TensorInfo, shape: tuple[int, int, int]) -> TensorInfo:
    """The matrices [experts, out, in] of this `shape`, of which `info` is foretold, as they are published in MXFP4: nothing of them
    can be read."""
    *rows, columns = shape
    groups = (*rows, columns // (2 * _PAIRS))
    codes = replace(info, name=info.name + _BLOCKS, dtype=torch.uint8, shape=(*groups, _PAIRS), nbytes=math.prod(groups) * _PAIRS)
    scales = replace(codes, name=info.name + _SCALES, shape=groups, nbytes=math.prod(groups))
    return replace(info, shape=shape, packed=_mxfp4(codes, scales))


def foretold_fp8(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], layout: ModelLayout) -> dict[str, TensorInfo]:
    """Those of foretold `tensors` that are published in FP8 by a config.json, as such: what Linears multiply by, but for the head
    and those that it says stay as they are. Nothing of them can be read."""
    form, settings = form_of(config), settings_of(config)
    if form != FP8 and not (form == COMPRESSED and all(group["weights"]["type"] == "float" for group in _groups(settings))):
        return {}
    left = [str(name).removeprefix("re:.*") for name in settings.get("modules_to_not_convert") or settings.get("ignore") or ()]
    infos = (tensors[name] for spec in layout.linears[:-1] for name in spec.tensors if not any(each in name for each in left))
    return {info.name: replace(info, packed=Packed(_codes(info), _codes(info))) for info in infos}


def _codes(info: TensorInfo) -> TensorInfo:
    """Codes of a foretold weight, a byte each."""
    return replace(info, dtype=torch.float8_e4m3fn, nbytes=math.prod(info.shape))


def _mxfp4(codes: TensorInfo, scales: TensorInfo, _: Any = None) -> Packed:
    if len(codes.shape) < 3 or codes.shape[-1] != _PAIRS:
        what = f"is {list(codes.shape)}, where blocks of {_PAIRS} bytes are needed"
        return Packed(codes, scales, fault=f"{what}. Get the model again")
    if scales.shape != codes.shape[:-1] or scales.dtype != torch.uint8:
        what = f"has scales {list(scales.shape)} of {scales.kind}, where {list(codes.shape[:-1])} of uint8 are needed"
        return Packed(codes, scales, fault=f"{what}. Get the model again")
    return Packed(codes, scales, (1, 2 * _PAIRS))


def _fp8(codes: TensorInfo, scales: TensorInfo, wanted: Any) -> Packed:
    found = Packed(codes, scales)
    shape = scales.shape if len(scales.shape) == 2 else (1, 1)
    odd = f"is {list(codes.shape)} with scales {list(scales.shape)} of {scales.kind}, which do not fit. Get the model again"
    if len(codes.shape) != 2 or math.prod(scales.shape) != math.prod(shape) or scales.dtype not in _SCALE_TYPES or 0 in shape:
        return replace(found, fault=odd)
    sizes = wanted if isinstance(wanted, list) and len(wanted) == 2 else (None, None)
    block = []
    for length, count, size in zip(codes.shape, shape, sizes, strict=True):
        even = length // count if length % count == 0 else None
        # As published: blocks of the config's size, the last one cut off. transformers takes even ones.
        cut = size if isinstance(size, int) and size > 0 and -(-length // size) == count else None
        if count > 1 and even and cut and even != cut:
            why = f"in blocks of {cut}, and transformers would take blocks of {even}: this is not supported"
            return replace(found, fault=f"is {list(codes.shape)} {why}")
        if (chosen := even or cut) is None:
            return replace(found, fault=odd)
        block.append(chosen)
    return replace(found, block=(block[0], block[1]))


def _compressed(codes: TensorInfo, scales: TensorInfo, _: Any) -> Packed:
    found = Packed(codes, scales)
    if scales.dtype not in _COMPRESSED_SCALES:
        return replace(found, fault=f"has scales of {scales.kind}, where bfloat16 or float32 is needed: this is not supported")
    if found.form == FP8:
        return _fp8(codes, scales, None)
    shape: Sequence[int] = scales.shape
    if len(codes.shape) != 2 or len(shape) != 2 or shape[0] != codes.shape[0] or 0 in shape or found.columns % shape[1]:
        return replace(found, fault=f"is {list(codes.shape)} with scales {list(shape)}, which do not fit. Get the model again")
    return replace(found, block=(1, found.columns // shape[1]))


_RULES: dict[str, tuple[_Rule, ...]] = {
    FP8: (
        _Rule(
            _WEIGHT, _CODES, (".weight_scale_inv", ".scale", ".qscale_weight"), _WEIGHT, _fp8, (".activation_scale", ".input_scale")
        ),
    ),
    MXFP4: (_Rule(_BLOCKS, (torch.uint8,), (_SCALES,), "", _mxfp4),),
    COMPRESSED: (
        _Rule(_WEIGHT, _CODES, (".weight_scale",), _WEIGHT, _compressed, (".input_scale",)),
        _Rule(".weight_packed", (torch.int32,), (".weight_scale",), _WEIGHT, _compressed, (".weight_shape",)),
    ),
}

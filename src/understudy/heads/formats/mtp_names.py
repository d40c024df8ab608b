"""The names of layers for multi-token prediction (MTP) in checkpoints, by ours for what they are.

Four ways of naming are published. Qwen3-Next, Qwen3.5 and EXAONE 4.5 have all of it under `mtp.`: `fc`, `pre_fc_norm_embedding`,
`pre_fc_norm_hidden` and `norm`, which all layers have in common, and decoder layers. DeepSeek-V3, GLM and their relatives number
layers on after the model's own: `layers.N.eh_proj`, `enorm`, `hnorm`, `shared_head.norm`, and the decoder layer's tensors beside
them. MiMo-V2 has the same under `mtp.layers.K`, with `final_layernorm`; its further layers read the model's hidden states.
ERNIE 4.5 has `mtp_block.K`, `mtp_emb_norm.K`, `mtp_hidden_norm.K` and `mtp_linear_proj.K`, and the model's own norm behind them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..mtp import CHAIN, MODEL

# In names of tensors of such layers of any kind.
ANY = re.compile(r"(^|\.)mtp(_|\.)")
# What may stand before the names of a text model's tensors.
_PREFIX = r"(?P<prefix>(?:model\.|language_model\.)*)"
_TOGETHER = re.compile(rf"{_PREFIX}mtp\.(?:layers\.(?P<number>\d+)\.)?(?P<rest>.+)")
_NUMBERED = re.compile(rf"{_PREFIX}layers\.(?P<number>\d+)\.(?P<rest>.+)")
_BLOCKS = re.compile(rf"{_PREFIX}mtp_(?P<module>block|emb_norm|hidden_norm|linear_proj)\.(?P<number>\d+)\.(?P<rest>.+)")
# Before our names of the decoder layer's tensors.
INSIDE = "layers.0."
_EMBEDDING, _HIDDEN, _JOIN, _NORM = "embedding_norm.0", "hidden_norm.0", "join.0", "norm.0"
# What is not the decoder layer's, by our names for it: of all layers, of one that is numbered on, and of one of MiMo-V2.
_COMMON = {
    "pre_fc_norm_embedding": _EMBEDDING, "pre_fc_norm_hidden": _HIDDEN, "fc": _JOIN, "norm": _NORM, "embed_tokens": "embedding",
}  # fmt: skip
_BESIDE = {
    "enorm": _EMBEDDING, "hnorm": _HIDDEN, "eh_proj": _JOIN, "shared_head.norm": _NORM, "shared_head.head": "output",
    "embed_tokens": "embedding",
}  # fmt: skip
_MIMO = {"enorm": _EMBEDDING, "hnorm": _HIDDEN, "eh_proj": _JOIN, "final_layernorm": _NORM}
_ERNIE = {"emb_norm": _EMBEDDING, "hidden_norm": _HIDDEN, "linear_proj": _JOIN}
# A norm of MiMo-V2's layers that its model's have under another name.
_MIMO_NORM, _MODEL_NORM = "pre_mlp_layernorm.", "post_attention_layernorm."


@dataclass(frozen=True)
class Naming:
    """The tensors of layers that predict further tokens."""

    # For each layer from 0 on: our name of a tensor, as if there were this layer alone -> the checkpoint's.
    layers: dict[int, dict[str, str]] = field(default_factory=dict)
    # Of those which all layers have in common.
    common: dict[str, str] = field(default_factory=dict)
    # What further layers read: CHAIN or MODEL.
    feed: str = CHAIN
    # Of which kind the layers are, by lists in the model's config that name the kind of each of its own; empty: it is not known.
    kinds: Mapping[str, str] = field(default_factory=dict)
    # The model's own norm, where that is the one behind the layers.
    norm: str = ""

    def of(self, layer: int) -> dict[str, str]:
        """Our name -> the checkpoint's, of all that `layer` is made of."""
        norm = {f"{_NORM}.weight": self.norm} if self.norm else {}
        return {**self.common, **norm, **self.layers[layer]}


def named(names: Iterable[str], blocks: int) -> Naming:
    """Of a checkpoint's tensors `names`, those of layers that predict further tokens, for a model of so many decoder `blocks`."""
    layers: dict[int, dict[str, str]] = {}
    common: dict[str, str] = {}
    norm, of_mimo = "", False
    for name in names:
        if together := _TOGETHER.fullmatch(name):
            inside = together["number"] is not None
            own = _ours(together["rest"], _MIMO if inside else _COMMON)
            of_mimo |= inside and _MIMO_NORM in own
            if not inside and not own.startswith(INSIDE):
                common[own] = name
            else:
                layers.setdefault(int(together["number"] or 0), {})[own.replace(_MIMO_NORM, _MODEL_NORM)] = name
        elif numbered := _NUMBERED.fullmatch(name):
            if (number := int(numbered["number"]) - blocks) >= 0:
                layers.setdefault(number, {})[_ours(numbered["rest"], _BESIDE)] = name
        elif block := _BLOCKS.fullmatch(name):
            own = _ERNIE.get(block["module"], INSIDE[:-1])
            layers.setdefault(int(block["number"]), {})[f"{own}.{block['rest']}"] = name
            norm = f"{block['prefix']}norm.weight"
    kinds = {"layer_types": "sliding_attention", "mlp_layer_types": "dense"} if of_mimo else {}
    if common and not layers:
        layers[0] = {}
    return Naming(layers, common, MODEL if of_mimo else CHAIN, kinds, norm)


def _ours(rest: str, own: Mapping[str, str]) -> str:
    """Our name of the tensor that its layer calls `rest`. `own`: ours of modules that are not the decoder layer's."""
    module, _, kind = rest.rpartition(".")
    ours = own.get(module)
    # tables are the only ones that are no module's
    return f"{INSIDE}{rest}" if ours is None else ours if ours == "embedding" else f"{ours}.{kind}"


def published(own: str, other: str) -> str:
    """What the checkpoint would call the tensor that is `own` by our names, where it has one of the same layer called `other`."""
    module, _, kind = own.rpartition(".")
    if together := _TOGETHER.fullmatch(other):
        number, inside = together["number"], any(part in _MIMO for part in together["rest"].split("."))
        theirs = {ours: name for name, ours in (_MIMO if inside else _COMMON).items()}
        start = other[: together.start("number" if number else "rest")].removesuffix("layers.")
        within = f"{start}layers.{number or 0}."
        if module in theirs:
            return f"{within if inside else start}{theirs[module]}.{kind}"
        return within + own.removeprefix(INSIDE)
    if numbered := _NUMBERED.fullmatch(other):
        theirs = {ours: name for name, ours in _BESIDE.items()}
        return other[: numbered.start("rest")] + (f"{theirs[module]}.{kind}" if module in theirs else own.removeprefix(INSIDE))
    block = _BLOCKS.fullmatch(other)
    assert block is not None, other
    theirs = {ours: name for name, ours in _ERNIE.items()}
    if module == _NORM:
        return f"{block['prefix']}norm.{kind}"
    rest = kind if module in theirs else own.removeprefix(INSIDE)
    return f"{block['prefix']}mtp_{theirs.get(module, 'block')}.{block['number']}.{rest}"

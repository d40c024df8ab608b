"""Models whose config alone tells that they would not be run exactly: each is refused by name, before any work."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ...errors import CheckpointError
from ...weights.published import form_of, unread
from ..recurrent_layers.mixers import recurrent_kinds
from .heads import refuse_other_tasks
from .wrapper import parts_in

# Words in the names of layers that carry a state from token to token, and in those of models that do not name their layers.
_RECURRENT = ("linear_attention", "mamba", "recurrent", "conv", "ssm", "rwkv", "gated_delta", "hybrid")
_STATEFUL = ("mamba", "rwkv", "xlstm")
# Words in the names of layers that look at some of the tokens before them, which they choose by what those hold.
_SPARSE = ("sparse", "compressed")
# Where configs say that such layers choose whole blocks of tokens, as MiniMax-M3 does.
_BLOCKS_CHOSEN = ("index_topk_blocks", "sparse_attention_config")
# Where they say how many tokens layers compress to one key, as DeepSeek-V4 does.
_COMPRESSED = ("compress_rates",)
# What configs call layers with an index, and where they say how much that chooses.
_INDEXED, _INDEX_SIZES = "indexed_attention", ("indexer_compress_ratio", "index_topk")
# Where configs name the kind of each layer.
_KINDS_OF_LAYERS = ("layer_types", "layers_block_type", "block_types")
# Where a config says that its weights are no floats, and where that says how.
_QUANTISED = ("quantization_config", "compression_config", "quantization")
_METHOD = ("quant_method", "quant_algo", "format", "mode")
# What FP8 may say of some weights, and what is read.
_FURTHER = {"expert_dtype": ("fp8", "fp4"), "modules_to_convert": ()}
# What quantised weights are called in the place of `weight`: by GPTQ and AWQ, by compressed-tensors, by HQQ.
_PACKED = ("qweight", "weight_packed", "W_q")


def refuse_unsupported(config: Mapping[str, Any], text: Mapping[str, Any] | None = None) -> None:
    """Raise CheckpointError, naming the kind, for models whose tree pass would not be exact (or is not built yet).

    text: the values of the text model's config, where `config` is a wrapper's."""
    kind = config.get("model_type", "unknown")

    def refuse(why: str) -> None:
        raise CheckpointError(f"Model type {kind!r} is not supported yet: {why}.")

    if config.get("is_encoder_decoder"):
        refuse("it is an encoder-decoder, and models that are a decoder alone are")
    if text is None and (parts := parts_in(config)):
        refuse(f"it is multimodal (its config has {parts[0]}) and has no text model of its own")
    refuse_other_tasks(config.get("architectures"))
    refuse_quantised(kind, config, text or {})
    config = config if text is None else text
    named: list[Any] = next((config[name] for name in _KINDS_OF_LAYERS if config.get(name)), [])
    kinds = [str(each).lower() for each in named]
    known = recurrent_kinds(config) or [None] * len(kinds)
    unknown = [name for name, recurrent in zip(kinds, known, strict=True) if recurrent is None]
    stateful = [name for name in unknown if any(word in name for word in _RECURRENT)]
    if not any(known):
        stateful += [str(kind) for word in _STATEFUL if word in str(config.get("model_type"))]
    sparse = next((name for name in kinds if any(word in name for word in _SPARSE)), None)
    if sparse is not None and not any(config.get(name) for name in (*_BLOCKS_CHOSEN, *_COMPRESSED)):
        refuse(f"its attention is sparse ({sparse}): an index chooses the earlier tokens that a layer looks at")
    if _INDEXED in kinds and not any(config.get(name) for name in _INDEX_SIZES):
        refuse(f"its layers have an index ({_INDEXED}), of which its config gives no sizes (such as {_INDEX_SIZES[0]})")
    if stateful:
        refuse(f"its recurrent layers ({stateful[0]}) are no delta nets, Mamba or short convolutions")
    if config.get("use_bidirectional_attention") in (True, "all"):
        refuse("its attention looks at later tokens too (use_bidirectional_attention), so that it writes no text")


def refuse_quantised(kind: str, *configs: Mapping[str, Any]) -> None:
    """Raise CheckpointError, naming the method, if one of the `configs` of this `kind` of model says its weights are quantised in a
    way that is not read."""
    for config in configs:
        for settings in filter(None, map(config.get, _QUANTISED)):
            known = settings if isinstance(settings, Mapping) else {}
            if settings is config.get(_QUANTISED[0]) and form_of(config):
                _refuse_further(kind, known)
                continue
            method = next((str(known[name]) for name in _METHOD if known.get(name)), "by a method that is not named")
            # Abbreviations stand in capitals.
            named = method.upper() if len(method) <= 5 else method
            named += f", {why}" if (why := unread(config)) else ""
            raise CheckpointError(_quantised(f"The weights of this {kind!r} model", named))


def _refuse_further(kind: str, settings: Mapping[str, Any]) -> None:
    """Raise CheckpointError for weights in FP8, or MXFP4, of which some are in a form that is not read."""
    for name, values in _FURTHER.items():
        if settings.get(name) not in (None, [], *values):
            raise CheckpointError(_quantised(f"Some weights of this {kind!r} model", f"{name} is {settings[name]!r}"))


def refuse_packed(parameter: str, tensors: Collection[str]) -> None:
    """Raise CheckpointError if `tensors` of a checkpoint hold its weight `parameter` in few bits, though no config says so."""
    path = parameter.removesuffix("weight")
    if packed := next((path + name for name in _PACKED if path + name in tensors), None):
        raise CheckpointError(_quantised("The weights of this checkpoint", f"it has {packed!r} for {parameter!r}"))


def _quantised(weights: str, how: str) -> str:
    advice = "give the checkpoint that it was made from, in bfloat16, or one in FP8, MXFP4, GPTQ or AWQ that transformers reads"
    return f"{weights} are quantised ({how}), and Understudy does not read them: {advice}."

"""What each layer keeps of a text, read off a model's config."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...compression import CompressedShape
from ...errors import CheckpointError
from ...layer_states import LayerShape
from ...recurrent import RecurrentShape
from ..recurrent_layers.mixers import FEED_FORWARD, layer_values, recurrent_kinds
from .own_attention import ALIBI, BIASED

# Model types without `layer_types` whose `sliding_window` holds for every layer. A window that is not known here is served
# all the same, by a layer that holds the whole context.
WINDOW_IN_EVERY_LAYER = ("mistral", "phi3", "starcoder2")
# Model types whose layers with a window have twice as many heads of keys as the config says.
WIDER_WINDOWS = ("mimo_v2_flash",)
# Where configs say of how many tokens an index has one key: one of means, or one that learns what each token counts.
MEANS, LEARNS = "indexer_compress_ratio", "index_kpool"
# In the kinds of layers that choose what they look at.
SPARSE = "sparse"
# What Inkling calls layers with a window, whose heads have names of their own in the config.
OWN_WINDOW = "hybrid_sliding"


def layers_read(config: Any) -> list[int | None]:
    """For each layer, the earlier one whose keys and values it reads; None for its own. The last layers of some models share
    those of the last layer of their kind before them. Raises CheckpointError where there is none."""
    count = config.num_hidden_layers
    kinds = getattr(config, "layer_types", None) or [""] * count
    first = count - (getattr(config, "num_kv_shared_layers", None) or 0)
    own = {kind: index for index, kind in enumerate(kinds[: max(first, 0)])}
    if lacking := sorted({*map(str, kinds)} - {*map(str, own)}):
        raise CheckpointError(
            f"The config's num_kv_shared_layers of {count - first} leaves no {lacking[0]!r} layer whose keys could be shared."
        )
    return [None if index < first else own[kind] for index, kind in enumerate(kinds)]


def heads_in(config: Any, index: int) -> int:
    """Attention heads of layer `index`; 1 where no layer attends."""
    if _has_own_window(config, index):
        return int(config.swa_num_attention_heads)
    each = getattr(config, "num_attention_heads_per_layer", None)
    return int(each[index] if each else getattr(config, "num_attention_heads", 1))


def layer_shape(config: Any, index: int, reads: int | None, latent: bool) -> LayerShape:
    rank = getattr(config, "kv_lora_rank", None) if latent else None
    kv_heads, key_size, value_size = _sizes(config, index) if rank is None else (1, rank + _turned(config, index), rank)
    values = layer_values(config)
    kinds = recurrent_kinds(values)
    kind = kinds[index] if kinds else None
    window = _window(config, index)
    if kind is None:
        keeps_nothing = bool(kinds) and values["layer_types"][index] == FEED_FORWARD
        heads = 0 if keeps_nothing else kv_heads
        chunk, index_size = _chunk(config, index), _index_size(config, index)
        compressed = _compressed(config, index)
        # what is compressed is key and value at once, and so is what is not, in all layers of such a model
        kept = bool(getattr(config, "compress_rates", None)) or (rank is not None and not keeps_nothing)
        return LayerShape(
            heads, key_size, value_size, window=window, reads=reads, chunk=chunk, index_size=index_size, latent=kept,
            compressed=compressed, recurrent=_with_ngrams(config, index, None), history=_history(config, index),
        )  # fmt: skip
    sizes = kv_heads if kind.attends else 0, key_size, value_size
    extent = (window or config.rel_extent) if getattr(config, "d_rel", None) else 0
    return LayerShape(
        *sizes, window, reads, _with_ngrams(config, index, kind.shape(config)), latent=rank is not None and kind.attends,
        history=_history(config, index), extent=extent,
    )  # fmt: skip


def _with_ngrams(config: Any, index: int, recurrent: RecurrentShape | None) -> RecurrentShape | None:
    """What the recurrent part of layer `index` keeps, with the inputs of the convolution of its n-grams, if it has one: the taps of
    that are as far apart as an n-gram is long."""
    if not _history(config, index):
        return recurrent
    channels = config.hc_count * config.hidden_size
    if recurrent is not None:
        return replace(recurrent, further=(*recurrent.further, channels))
    return RecurrentShape(channels, (config.ple_conv_kernel_size - 1) * config.ngram_size + 1)


def _history(config: Any, index: int) -> int:
    """Tokens before a node that layer `index` looks up with it, as an n-gram; 0: it looks none up."""
    # which are counted from one
    return config.ngram_size - 1 if index + 1 in (getattr(config, "ple_layer_ids", None) or ()) else 0


def _sizes(config: Any, index: int) -> tuple[int, int, int]:
    """Heads of keys of layer `index`, and the sizes of a key and of a value. Keys and values that are made of a latent state are
    those that stock code attends with: each head has its own, a key of a part without a rope and one with it."""
    heads = heads_in(config, index)
    if _has_own_window(config, index):
        return config.swa_num_key_value_heads, config.swa_head_dim, config.swa_head_dim
    kv_heads = getattr(config, "num_key_value_heads", None) or _kv_heads(config) or heads
    if config.model_type in WIDER_WINDOWS and _window(config, index):
        kv_heads *= 2
    if (plain := getattr(config, "qk_nope_head_dim", None)) is not None:
        return heads, plain + config.qk_rope_head_dim, config.v_head_dim
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    further = BIASED if config.model_type in ALIBI else 0
    return kv_heads, size + further, getattr(config, "v_head_dim", None) or size


def _has_own_window(config: Any, index: int) -> bool:
    """Has layer `index` a window, and heads of its own for it?"""
    kinds: Any = getattr(config, "layer_types", None)
    return bool(kinds) and kinds[index] == OWN_WINDOW and hasattr(config, "swa_head_dim")


def _turned(config: Any, index: int) -> int:
    """Numbers beside the latent state of layer `index` that positions turn; 0 in layers without a rope."""
    ropes = getattr(config, "no_rope_layers", None)
    return int(config.qk_rope_head_dim) if not ropes or ropes[index] else 0


def _kv_heads(config: Any) -> int | None:
    """Heads of keys by the names that Falcon has for them; None: it does not say."""
    count = getattr(config, "num_kv_heads", None)
    return 1 if count and config.multi_query and not config.new_decoder_architecture else count


def _chunk(config: Any, index: int) -> int:
    """Tokens of the chunks to whose beginning layer `index` looks back; 0: it has none."""
    kinds = getattr(config, "layer_types", None)
    chunked = kinds is not None and kinds[index] == "chunked_attention"
    return int(getattr(config, "attention_chunk_size", None) or 0) if chunked else 0


def _index_size(config: Any, index: int) -> int:
    """Numbers in a key of the index of layer `index`; 0: it has none, or looks at what the index of a layer before it chose."""
    if getattr(config, "compress_rates", None):
        return 0
    kinds, layers = getattr(config, "indexer_types", None), getattr(config, "layer_types", None)
    if getattr(config, MEANS, None):
        return int(config.indexer_head_dim) if layers and layers[index] == "indexed_attention" else 0
    of_tokens = getattr(config, "index_topk", None) and not (kinds and kinds[index] == "shared")
    of_blocks = getattr(config, "index_topk_blocks", None) and layers and "sparse" in layers[index]
    size = int(getattr(config, "index_head_dim", None) or 0) if of_tokens or of_blocks else 0
    return 2 * size if getattr(config, LEARNS, None) else size


def _compressed(config: Any, index: int) -> CompressedShape | None:
    """How layer `index` compresses the keys of old tokens; None: it does not. Where an index chooses, blocks overlap."""
    kinds, rates = getattr(config, "layer_types", None), getattr(config, "compress_rates", None)
    if not kinds or not rates or kinds[index] not in rates:
        return None
    chooses = SPARSE in kinds[index]
    return CompressedShape(rates[kinds[index]], chooses, config.index_head_dim if chooses else 0)


def _window(config: Any, index: int) -> int:
    """Tokens that layer `index` looks back at, its own included; 0: all of them."""
    window = getattr(config, "sliding_window", None)
    if not window:
        return 0
    if kinds := getattr(config, "layer_types", None):
        return int(window) if kinds[index] in ("sliding_attention", OWN_WINDOW) or _compressed(config, index) else 0
    return int(window) if config.model_type in WINDOW_IN_EVERY_LAYER else 0

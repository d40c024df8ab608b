"""The facts of a model that its config tells: sizes of its layers, of its vocabulary, and what it does to its logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...compression import CompressedShape
from ...devices import Device
from ...errors import CheckpointError, UsageError
from ...layer_states import LayerShape
from ...recurrent import RecurrentShape
from ..recurrent_layers.mixers import FEED_FORWARD, layer_values, recurrent_kinds
from .own_attention import ALIBI, BIASED
from .ropes import longest_exact, said_of
from .wrapper import text_config

# Model types without `layer_types` whose `sliding_window` holds for every layer. A window that is not known here is served
# all the same, by a layer that holds the whole context.
WINDOW_IN_EVERY_LAYER = ("mistral", "phi3", "starcoder2")
# Model types whose layers with a window have twice as many heads of keys as the config says.
WIDER_WINDOWS = ("mimo_v2_flash",)
# Where configs say of how many tokens an index has one key: one of means, or one that learns what each token counts.
MEANS, LEARNS = "indexer_compress_ratio", "index_kpool"
# In the kinds of layers that choose what they look at.
SPARSE = "sparse"
# Where configs say how many states layers hand on side by side: of such as are mixed anew in each layer, and of all.
MIXED = ("hc_count", "hc_mult")
STREAMS = ("altup_num_inputs", *MIXED)
# Values of configs whose models scale or cap what their head gives.
CHANGES_LOGITS = ("final_logit_softcapping", "logits_scaling", "logits_soft_cap")
# What Inkling calls layers with a window, whose heads have names of their own in the config.
OWN_WINDOW = "hybrid_sliding"


@dataclass(frozen=True)
class ModelShape:
    """Sizes of one model, read off its config once."""

    # what each decoder layer keeps, in order
    layers: tuple[LayerShape, ...]
    # attention heads of the layer that has most of them
    heads: int
    # most attention heads that share one head of keys
    shared_heads: int
    # numbers in a state that layers hand on, and how many states they hand on side by side
    hidden_size: int
    states: int
    # tokens the model knows
    vocabulary: int
    # does the model scale or cap its head's output? Then logits are there three times for a while
    changes_logits: bool
    # does each head of keys choose by an index of its own what it looks at?
    heads_choose: bool
    # has an index keys of blocks of tokens?
    pools: bool
    # what of it runs on the processor alone so far, one sentence without its end; empty: nothing
    alone: str
    # distances by which something is added to scores, in the layer that has most; 0: nothing is
    extent: int
    # longest text that keeps one rope from its first token on, in tokens; None where the config does not say
    positions: int | None
    # why keys and values cannot have 8 bits, one sentence; empty: they can
    all_bits: str

    @classmethod
    def of(cls, config: Any, *, small: bool = False, latent: bool = False) -> ModelShape:
        """The shape of the text model that a transformers `config` describes. `small`: keys and values have 8 bits; `latent`: of
        layers that make them of a latent state the state is kept. Raises CheckpointError for 8 bits where there are none."""
        config = text_config(config)
        configs = _layer_configs(config)
        why = _needs_all_bits(configs, latent)
        if small and why:
            raise CheckpointError(f"{why} Leave --kv-bits out.")
        reads = layers_read(config)
        alone = [_layer_shape(layer_config, index, reads[index], latent) for index, layer_config in enumerate(configs)]
        layers = tuple(replace(layer, shared=index in reads, small=small) for index, layer in enumerate(alone))
        heads = [_heads(layer_config, index) for index, layer_config in enumerate(configs)]
        return cls(
            layers=layers,
            heads=max(heads),
            shared_heads=max(count // max(layer.kv_heads, 1) for count, layer in zip(heads, layers, strict=True)),
            hidden_size=config.hidden_size,
            states=next((getattr(config, name) for name in STREAMS if getattr(config, name, None)), 1),
            vocabulary=getattr(config, "unpadded_vocab_size", None) or config.vocab_size,
            changes_logits=any(getattr(config, name, None) for name in CHANGES_LOGITS),
            heads_choose=(heads_choose := _heads_choose(config, layers)),
            pools=(pools := _pools(config, layers)),
            alone=_alone(layers, heads_choose, pools),
            extent=max(layer.extent for layer in layers),
            positions=longest_exact(config),
            all_bits=why,
        )

    def for_device(self, device: Device) -> ModelShape:
        """Itself. Raises UsageError where `device` does not run such a model yet."""
        if self.alone and device.own_memory:
            raise UsageError(f"{self.alone}, which runs on the processor alone so far, not on {device.name}: use --device cpu.")
        return self

    def note_on(self, device: Device) -> str:
        """What a person should know of how `device` runs such a model, one line; empty: all is well."""
        kinds = [layer.recurrent for layer in self.layers if layer.recurrent is not None and layer.recurrent.value_heads]
        if not device.own_memory or all(map(device.walks, kinds)):
            return ""
        return f"recurrent layers run in plain torch on {device.name}, which is slower: no kernel serves their kind or sizes"

    @property
    def latent(self) -> bool:
        """Are latent states kept in the place of keys and values, of any layer?"""
        return any(layer.latent for layer in self.layers)

    @property
    def recurs(self) -> bool:
        """Does any layer keep a state that goes on from token to token?"""
        return any(layer.recurrent is not None for layer in self.layers)

    def holds_whole(self, slots: int) -> bool:
        """Does every layer hold the keys and values of a text of `slots` tokens, and nothing else?"""
        return not self.recurs and all(layer.slots(slots) == slots and not layer.compressed for layer in self.layers)

    def widest_line(self, dtype: torch.dtype) -> int:
        """Bytes of the keys, or of the values, of a token in the widest layer of a model that computes in `dtype`."""
        return max(layer.kv_heads * max(layer.key_size, layer.value_size) for layer in self.layers) * cache_dtype(dtype).itemsize


def compute_dtype(asked: torch.dtype | None, stored: torch.dtype, own_memory: bool) -> torch.dtype:
    """The type in which a model whose weights are `stored` so computes: the one that was `asked` for, or that of its weights. A
    processor, which has no `own_memory`, computes in float32 what is float16, as it has few instructions for that: the same
    weights, and finer sums."""
    return asked or (torch.float32 if stored == torch.float16 and not own_memory else stored)


def notes_on(config: Any, context: int, dtype: torch.dtype) -> tuple[str, str]:
    """A sentence where texts of `context` tokens have the long frequencies of a longrope, by a config `for_context`, and one where
    a model that its config calls float16 computes in float32; else "" each."""
    named = getattr(text_config(config), "dtype", None) or getattr(config, "dtype", None)
    apart = named == torch.float16 and dtype == torch.float32
    return said_of(config, context), "Its weights are float16, and are computed with in float32." if apart else ""


def cache_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type of keys and values in the KV cache of a model that computes in `dtype`.

    One that is told to compute in float16 keeps float32 on a processor (the same values; its attention has no float16)."""
    return torch.float32 if dtype == torch.float16 else dtype


def _layer_configs(config: Any) -> list[Any]:
    """A config for each layer: transformers' own where layers differ, else `config` for all."""
    if getattr(config, "is_heterogeneous", False):
        return list(config.per_layer_config)
    return [config] * config.num_hidden_layers


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


def _heads(config: Any, index: int) -> int:
    """Attention heads of layer `index`; 1 where no layer attends."""
    if _has_own_window(config, index):
        return int(config.swa_num_attention_heads)
    each = getattr(config, "num_attention_heads_per_layer", None)
    return int(each[index] if each else getattr(config, "num_attention_heads", 1))


def _heads_choose(config: Any, layers: Sequence[LayerShape]) -> bool:
    """See `ModelShape.heads_choose`."""
    return bool(getattr(config, "index_topk_blocks", None)) and any(layer.index_size for layer in layers)


def _pools(config: Any, layers: Sequence[LayerShape]) -> bool:
    """See `ModelShape.pools`."""
    return any(layer.index_size for layer in layers) and any(getattr(config, name, None) for name in (MEANS, LEARNS))


def _alone(layers: Sequence[LayerShape], heads_choose: bool, pools: bool) -> str:
    """See `ModelShape.alone`."""
    if heads_choose:
        return "Each head of this model chooses the tokens that it looks at"
    if pools:
        return "An index of this model chooses blocks of tokens"
    if any(layer.compressed for layer in layers):
        return "Layers of this model compress the keys of old tokens"
    if any(layer.extent for layer in layers):
        return "Attention of this model adds a bias by how far a token lies back"
    return "This model looks n-grams up" if any(layer.history for layer in layers) else ""


def mixed_states(config: Any) -> int:
    """How many states the layers of a model hand on side by side that are mixed anew in each (hyper-connections)."""
    return max(getattr(text_config(config), name, None) or 1 for name in MIXED)


def keeps_states(devices: Sequence[Device]) -> bool:
    """Are latent states kept in the place of keys and values on these `devices`? Only a processor attends over them so far."""
    return len(devices) == 1 and not devices[0].own_memory


def _needs_all_bits(configs: Sequence[Any], latent: bool) -> str:
    """See `ModelShape.all_bits`; of the config of each layer."""
    config = configs[0]
    if config.model_type in ALIBI:
        return f"Keys of a {config.model_type!r} model cannot have 8 bits: they hold positions, which these do not tell apart."
    if getattr(config, "compress_rates", None):
        return f"A {config.model_type!r} model compresses the keys of old tokens, and what it keeps has no 8 bits."
    if latent and any(getattr(each, "kv_lora_rank", None) for each in configs):
        return f"A {config.model_type!r} model keeps a latent state in the place of keys and values, and that has no 8 bits."
    return ""


def _layer_shape(config: Any, index: int, reads: int | None, latent: bool) -> LayerShape:
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
            compressed=compressed,
        )  # fmt: skip
    sizes = kv_heads if kind.attends else 0, key_size, value_size
    beside, history = _beside(config, index)
    extent = (window or config.rel_extent) if getattr(config, "d_rel", None) else 0
    return LayerShape(
        *sizes, window, reads, kind.shape(config), latent=rank is not None and kind.attends, beside=beside, history=history,
        extent=extent,
    )  # fmt: skip


def _beside(config: Any, index: int) -> tuple[RecurrentShape | None, int]:
    """What a layer with n-grams keeps beside its recurrent part: the inputs of a convolution whose taps are as far apart as an
    n-gram is long, and how many tokens it looks back at to look them up."""
    # which count from one
    if index + 1 not in (getattr(config, "ple_layer_ids", None) or ()):
        return None, 0
    taps = (config.ple_conv_kernel_size - 1) * config.ngram_size + 1
    return RecurrentShape(channels=config.hc_count * config.hidden_size, taps=taps), config.ngram_size - 1


def _sizes(config: Any, index: int) -> tuple[int, int, int]:
    """Heads of keys of layer `index`, and the sizes of a key and of a value. Keys and values that are made of a latent state are
    those that stock code attends with: each head has its own, a key of a part without a rope and one with it."""
    heads = _heads(config, index)
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

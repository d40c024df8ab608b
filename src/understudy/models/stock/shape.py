"""The facts of a model that its config tells: sizes of its layers, of its vocabulary, and what it does to its logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...devices import Device
from ...errors import CheckpointError, UsageError
from ...layer_states import LayerShape
from .layer_shapes import LEARNS, MEANS, heads_in, layer_shape, layers_read
from .own_attention import ALIBI
from .ropes import longest_exact, said_of
from .wrapper import text_config

# Where configs say how many states layers hand on side by side: of such as are mixed anew in each layer, and of all.
MIXED = ("hc_count", "hc_mult")
STREAMS = ("altup_num_inputs", *MIXED)
# Values of configs whose models scale or cap what their head gives.
CHANGES_LOGITS = ("final_logit_softcapping", "logits_scaling", "logits_soft_cap")


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
        alone = [layer_shape(layer_config, index, reads[index], latent) for index, layer_config in enumerate(configs)]
        layers = tuple(replace(layer, shared=index in reads, small=small) for index, layer in enumerate(alone))
        heads = [heads_in(layer_config, index) for index, layer_config in enumerate(configs)]
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
    """Are latent states kept in the place of keys and values on these `devices`? A single one attends over them so far."""
    return len(devices) == 1 and devices[0].attends_over_states


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

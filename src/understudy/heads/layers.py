"""Decoder layers of draft heads: stock layers, of Llama or of the target's own class, with attention to a cache where drafts are
made, and of torch in training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..layer_states import LayerShape
from ..models.stock import hf
from ..models.stock.ropes import fix_ropes
from ..models.stock.shape import ModelShape
from ..models.streamed import CurrentPass, attention, pass_cache
from . import HeadConfig, Places
from .experts import experts_of_heads, hand_over

# Rotary positions that do not depend on how long a text is, as nothing in a head may depend on how a text was cut into passes.
ROPES = ("default", "linear", "llama3", "yarn")


def llama_config(config: HeadConfig) -> Any:
    """The transformers LlamaConfig of the layers of a head. Raises CheckpointError where `config.layer` describes none."""
    with hf.refused("The config of the head's layers cannot be used", config.layer, "Get the head again."):
        from transformers import LlamaConfig

        llama: Any = LlamaConfig(**config.layer)
        llama._attn_implementation = attention_of_heads()
        kind = llama.rope_parameters["rope_type"]
        if kind not in ROPES:
            raise ValueError(f"rope_type {kind!r} is not one of {', '.join(ROPES)}")
    return llama


def attention_of_heads() -> str:
    """The name under which stock layers find `head_attention`; registered with transformers at the first call."""
    return hf.register_attention("understudy-head", head_attention)


def stock_config(config: HeadConfig) -> Any:
    """The transformers config of a text model whose last layers are the head's, where `config.layer` names its `model_type`.

    Raises CheckpointError where it describes none."""
    values = dict(config.layer)
    with hf.refused("The config of the head's layers cannot be used", config.layer, "Get the head again."):
        from transformers import CONFIG_MAPPING

        return CONFIG_MAPPING[values.pop("model_type")](**values)


def stock_decoder(config: HeadConfig) -> Any:
    """The stock headless model of `stock_config`, whose tensors hold no memory. CheckpointError where it is built in another way
    than its layers and its norm one after another."""
    text = stock_config(config)
    with hf.refused("The head's layers cannot be built", config.layer, "Get the head again."), torch.device("meta"):
        from transformers import AutoModel

        build: Any = AutoModel.from_config
        told = {"attn_implementation": attention_of_heads(), "experts_implementation": experts_of_heads()}
        model = build(text, dtype=torch.float32, **told)
    if not all(isinstance(getattr(model, name, None), nn.Module) for name in ("layers", "norm", "rotary_emb")):
        raise CheckpointError(f"Layers of {type(model).__name__} cannot be those of a head; this is not supported yet.")
    return model


def last_blocks(stock: Any, count: int) -> list[nn.Module]:
    """The last `count` decoder layers of a `stock_decoder`, numbered from 0."""
    blocks = list(stock.layers)[-count:]
    for module in (part for block in blocks for part in block.modules()):
        if isinstance(number := getattr(module, "layer_idx", None), int):
            module.layer_idx = number - (len(stock.layers) - count)
    return blocks


def copies_of_last(stock: Any, count: int) -> list[nn.Module]:
    """`count` layers like the last one of a `stock_decoder`, numbered from 0."""
    blocks = [copy.deepcopy(stock.layers[-1]) for _ in range(count)]
    for index, block in enumerate(blocks):
        for module in block.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = index
    return blocks


def layer_shapes(config: HeadConfig) -> tuple[LayerShape, ...]:
    """What each layer of a head keeps of a token, in order."""
    if not config.layers:
        return ()
    if "model_type" in config.layer:
        shapes = ModelShape.of(stock_config(config)).layers
        if not config.heads:
            return shapes[-config.layers :]
        # Each drafts a token, and they are alike. What is written runs further ahead of what all of them have than in other heads.
        window = shapes[-1].window + config.layers if shapes[-1].window else 0
        return (replace(shapes[-1], window=window),) * config.layers
    llama = llama_config(config)
    return (LayerShape(llama.num_key_value_heads, llama.head_dim, llama.head_dim),) * config.layers


def head_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None,
    scaling: float | None = None, **others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention function as transformers calls it: query [b, heads, n, size] -> [b, n, heads, size].

    With a mask it is torch's, over the keys and values it is given. Without one it is the project's: the pass under way puts keys
    and values in a cache and reads them there."""
    if attention_mask is None:
        return attention(module, query, key, value, None, scaling, **others)
    # In float32 also where other products of a training have fewer bits: torch's gradient of attention is slow with those.
    with torch.autocast(query.device.type, enabled=False):
        query, key, value = query.float(), key.float(), value.float()
        if (sinks := others.get("s_aux")) is not None:
            # Each head has a key of its own that every token sees, and that has no value.
            heads, count, seen = query.shape[1], query.shape[2], key.shape[2]
            key, value = (nn.functional.pad(x.repeat_interleave(heads // x.shape[1], 1), (0, 0, 0, 1)) for x in (key, value))
            shown = torch.where(attention_mask, 0.0, -torch.inf).expand(*query.shape[:2], count, seen)
            attention_mask = torch.cat((shown, sinks.float().view(1, -1, 1, 1).expand(*query.shape[:2], count, 1)), -1)
        whole = nn.functional.scaled_dot_product_attention(query, key, value, attention_mask, scale=scaling, enable_gqa=True)
    return whole.transpose(1, 2), None


class Rope:
    """Rotary positions of a head's layers, held once for each device. Not a module: its frequencies stay in float32.

    kind, config: transformers' class of rotary embeddings, and what it is made of. Where kinds of layers have ropes of their own,
    that of the last layer."""

    def __init__(self, kind: Callable[[Any], nn.Module], config: Any):
        self.kind = kind
        self.config = config
        takes_kind = "layer_type" in signature(getattr(kind, "forward", kind)).parameters
        self.told = {"layer_type": config.layer_types[-1]} if takes_kind and getattr(config, "layer_types", None) else {}
        self._of: dict[Any, nn.Module] = {}

    def __call__(self, x: Tensor, positions: Tensor) -> Any:
        """Cosines and sines [b, n, size of a key] in the type of `x`, for tokens at `positions` [b, n]."""
        if x.device not in self._of:
            rope = self.kind(self.config).to(x.device)
            fix_ropes(rope)
            self._of[x.device] = rope
        return self._of[x.device](x, positions, **self.told)


class HeadLayers(nn.ModuleList):
    """Decoder layers one after another, which share their rotary positions.

    Each of `blocks` is called as a LlamaDecoderLayer is, and its attention knows the number of its layer."""

    def __init__(self, rope: Rope, blocks: Iterable[nn.Module], current: CurrentPass):
        super().__init__(blocks)
        self.rope = rope
        for module in self.modules():
            if hasattr(module, "layer_idx"):
                object.__setattr__(module, "understudy", current)
        hand_over(self, current)

    @classmethod
    def of(cls, config: HeadConfig, current: CurrentPass) -> HeadLayers:
        """The `config.layers` stock layers of a head: of Llama, or of what `config.layer` names, which hold no memory yet."""
        if "model_type" in config.layer:
            decoder = stock_decoder(config)
            return cls(Rope(type(decoder.rotary_emb), decoder.config), last_blocks(decoder, config.layers), current)
        llama, stock = llama_config(config), hf.llama()
        blocks = [stock.LlamaDecoderLayer(llama, index) for index in range(config.layers)]
        return cls(Rope(stock.LlamaRotaryEmbedding, llama), blocks, current)

    @torch.no_grad()
    def add_nothing(self, first: int) -> None:
        """Let layers from number `first` on add nothing to what they are given; they learn to add something from the first step."""
        blocks: list[Any] = list(self)
        for block in blocks[first:]:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()

    def forward(self, x: Tensor, places: Places) -> Tensor:
        """x [b, n, hidden size] -> what the last layer gives, of the same shape."""
        for number in range(len(self)):
            x = self.one(number, x, places)
        return x

    def one(self, number: int, x: Tensor, places: Places) -> Tensor:
        """What layer `number` gives for x [b, n, hidden size], of the same shape."""
        cache = pass_cache() if places.mask is None else places.cache
        rope = self.rope(x, places.positions)
        out: Tensor = self[number](x, attention_mask=places.mask, past_key_values=cache, position_embeddings=rope)
        return out


def rms_norm(config: HeadConfig, size: int = 0) -> nn.Module:
    """A norm over `size` numbers, or over the hidden size, as the head's layers have them."""
    norm: nn.Module = hf.llama().LlamaRMSNorm(size or config.target.hidden_size, eps=config.layer.get("rms_norm_eps", 1e-6))
    return norm

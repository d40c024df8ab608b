"""The demo model's architecture, and how it grows while it is trained: from 4 layers to 16."""

import copy
from dataclasses import dataclass

from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from understudy.demo.text import CONTEXT, VOCABULARY


@dataclass(frozen=True)
class Stage:
    """From this share of the training on: so many layers, windows of so many tokens."""

    start: float
    layers: int
    window: int


STAGES = (Stage(0.0, 4, 256), Stage(0.25, 8, 256), Stage(0.5, 16, 256), Stage(0.75, 16, 512), Stage(0.9, 16, 1024))
"""Shallow and short first: a step then costs a fifth, and what is learned early needs neither depth nor distance."""

FURTHER = (Stage(0.0, 16, 256), Stage(0.5, 16, 512), Stage(0.85, 16, 1024))
"""The same for a model that is trained further: it is deep already."""


def configuration() -> LlamaConfig:
    """As deep as a real model of a billion weights, and narrow."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=448,
        num_hidden_layers=STAGES[0].layers,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
    )


def deepen(model: LlamaForCausalLM, layers: int) -> None:
    """Doubles the depth until it is `layers`: after each block a copy, silent at first since it ends in zeros."""
    while len(model.model.layers) < layers:
        blocks = nn.ModuleList()
        for block in model.model.layers:
            twin = copy.deepcopy(block)
            nn.init.zeros_(twin.self_attn.o_proj.weight)
            nn.init.zeros_(twin.mlp.down_proj.weight)
            blocks.extend((block, twin))
        model.model.layers = blocks
    for index, block in enumerate(model.model.layers):
        block.self_attn.layer_idx = index
        block.compile(dynamic=False)
    model.config.num_hidden_layers = layers

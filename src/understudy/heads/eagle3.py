"""EAGLE-3 (arXiv 2503.01840): decoder layers that read hidden states of several depths of the target, and the states that they gave
themselves below the last accepted token. It says tokens of a smaller vocabulary, with an output head of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import DraftHead, HeadConfig, Places
from .layers import HeadLayers, rms_norm


class FusedLayer(nn.Module):
    """The first layer: its attention reads [norm of the embedding; norm of the hidden state], its residual is the hidden state.

    stock: a decoder layer of transformers, whose parts it takes over. `norm_before_residual`: is the residual the norm's output?"""

    def __init__(self, stock: Any, config: HeadConfig):
        super().__init__()
        self.norm_before_residual = bool(config.options.get("norm_before_residual"))
        self.self_attn, self.mlp = stock.self_attn, stock.mlp
        for name in ("q_proj", "k_proj", "v_proj"):
            old = getattr(self.self_attn, name)
            wide = nn.Linear(2 * config.target.hidden_size, old.out_features, bias=old.bias is not None)
            setattr(self.self_attn, name, wide)
        self.input_layernorm = stock.input_layernorm
        self.post_attention_layernorm = stock.post_attention_layernorm
        self.hidden_norm = rms_norm(config)

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        """x [b, n, 2 * hidden size] -> [b, n, hidden size]."""
        embedded, hidden = x.chunk(2, -1)
        normed = self.hidden_norm(hidden)
        residual = normed if self.norm_before_residual else hidden
        attended = self.self_attn(torch.cat([self.input_layernorm(embedded), normed], -1), **given)[0] + residual
        fed: Tensor = attended + self.mlp(self.post_attention_layernorm(attended))
        return fed


class Eagle3(DraftHead):
    """concat of hidden states -> Linear -> decoder layers -> norm -> output head. A node's state is what the last layer gives for
    it, which takes the place of the Linear's output below it.

    Options, all False unless given, as speculators has them: `norm_before_residual` of the first layer; `norm_before_fc`, a norm of
    the concatenated hidden states; `fc_norm`, a norm of each of them; `norm_output`, whether a state has passed the last norm;
    `bias` of the Linear."""

    attends_in_tree = True

    def __init__(self, config: HeadConfig):
        super().__init__(config)
        size, options, taps = config.target.hidden_size, config.options, len(config.taps)
        self.norm_output = bool(options.get("norm_output"))
        self.joined_norm = rms_norm(config, taps * size) if options.get("norm_before_fc") else nn.Identity()
        each = (rms_norm(config) if options.get("fc_norm") else nn.Identity() for _ in range(taps))
        self.tap_norms = nn.ModuleList(each)
        self.fc = nn.Linear(taps * size, size, bias=bool(options.get("bias")))
        self.layers = HeadLayers.of(config, self.current)
        self.layers[0] = FusedLayer(self.layers[0], config)
        self.norm = rms_norm(config)

    def begin(self, hidden: Tensor, embedded: Tensor, places: Places) -> Tensor:
        taps = [norm(tap) for norm, tap in zip(self.tap_norms, hidden.unbind(2), strict=True)]
        return self.follow(self.fc(self.joined_norm(torch.cat(taps, -1))), embedded, 0, places)

    def follow(self, states: Tensor, embedded: Tensor, depth: int, places: Places) -> Tensor:
        given: Tensor = self.layers(torch.cat([embedded, states], -1), places)
        return self.norm(given) if self.norm_output else given

    def features(self, states: Tensor, depth: int) -> Tensor:
        return states if self.norm_output else self.norm(states)

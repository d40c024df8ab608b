"""Multi-token prediction (MTP): the layer that a checkpoint brings along to predict the token after the next one (DeepSeek-V3,
arXiv 2412.19437). It was trained with the model, and transformers drops it.

    state of x_j = norm(layer(join([embedding_norm(embedding of x_j), hidden_norm(h)])))

h is the hidden state at x_j-1 after the model's final norm, and the state of the token before in the place of it where a text is
drafted on: so one layer drafts several tokens. The layer is of the model's own class. The model's output head gives the logits."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..models.kept import float32_names
from . import DraftHead, HeadConfig, Places
from .layers import HeadLayers, Rope, last_blocks, stock_decoder


class MtpHead(DraftHead):
    """One decoder layer of the target's class over its hidden states and the embeddings of the tokens after them.

    Options: `own_output`, whether it has an output head of its own (False). Matrices hold no memory until they are loaded."""

    attends_in_tree = True

    def __init__(self, config: HeadConfig):
        super().__init__(config)
        size = config.target.hidden_size
        stock = stock_decoder(config)
        self.embedding_norm = copy.deepcopy(stock.norm)
        self.hidden_norm = copy.deepcopy(stock.norm)
        self.join = nn.Linear(2 * size, size, bias=False, device="meta")
        blocks = last_blocks(stock, config.layers)
        self.layers = HeadLayers(Rope(type(stock.rotary_emb), stock.config), blocks, self.current)
        self._float32 = {dtype: float32_names(stock, dtype) for dtype in (torch.bfloat16, torch.float16)}
        self.norm = stock.norm
        if config.options.get("own_output"):
            self.output = nn.Linear(size, config.target.vocab_size, bias=False, device="meta")

    def in_float32(self, name: str, dtype: torch.dtype) -> bool:
        return dtype in self._float32 and self._float32[dtype](name)

    def begin(self, hidden: Tensor, embedded: Tensor, places: Places) -> Tensor:
        return self._state(hidden[:, :, 0], embedded, places)

    def follow(self, states: Tensor, embedded: Tensor, depth: int, places: Places) -> Tensor:
        return self._state(states, embedded, places)

    def features(self, states: Tensor, depth: int) -> Tensor:
        return states

    def _state(self, hidden: Tensor, embedded: Tensor, places: Places) -> Tensor:
        joined = torch.cat((self.embedding_norm(embedded), self.hidden_norm(hidden)), dim=-1)
        state: Tensor = self.norm(self.layers(self.join(joined), places))
        return state

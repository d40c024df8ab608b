"""Multi-token prediction (MTP): the layers that a checkpoint brings along to predict the tokens after the next one (DeepSeek-V3,
arXiv 2412.19437). They were trained with the model, and transformers drops them.

    o = norm(layer(join([embedding_norm(embedding of x_j), hidden_norm(h)])))

One layer drafts several tokens: h is the model's hidden state at x_j-1, after its final norm, and what the layer gave for the token
before in the place of it where a text is drafted on. Of several layers each drafts one token, and predicts one token further than
the one before: layer k, counted from 1, reads with x_j what layer k - 1 gave for x_j-1, or, where they were trained so
("feed": MiMo-V2), the model's own hidden state at x_j-k. So layer k knows of no token before x_k.

The state of a token is what the layer gave that says the token after it, and what each further layer reads with its child. Layers
are of the model's own class; the model's output head gives the logits."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..models.kept import float32_names
from . import DraftHead, HeadConfig, Places
from .layers import HeadLayers, Rope, copies_of_last, stock_decoder

# What further layers read: what the one before gave, or the model's hidden states.
CHAIN, MODEL = "chain", "model"


class MtpHead(DraftHead):
    """Decoder layers of the target's class, each over hidden states and the embeddings of the tokens after them.

    Options: `own_output`, whether it has an output head of its own (False); `feed`, what further layers read (CHAIN or MODEL);
    `shared`, whether all layers have one join and the same norms (False). Matrices hold no memory until they are loaded."""

    attends_in_tree = True

    def __init__(self, config: HeadConfig):
        super().__init__(config)
        size = config.target.hidden_size
        stock = stock_decoder(config)
        count = 1 if config.options.get("shared") else config.layers
        self.embedding_norm = nn.ModuleList(copy.deepcopy(stock.norm) for _ in range(count))
        self.hidden_norm = nn.ModuleList(copy.deepcopy(stock.norm) for _ in range(count))
        self.join = nn.ModuleList(nn.Linear(2 * size, size, bias=False, device="meta") for _ in range(count))
        blocks = copies_of_last(stock, config.layers)
        self.layers = HeadLayers(Rope(type(stock.rotary_emb), stock.config), blocks, self.current)
        self._float32 = {dtype: float32_names(stock, dtype) for dtype in (torch.bfloat16, torch.float16)}
        self.norm = nn.ModuleList(copy.deepcopy(stock.norm) for _ in range(count))
        if config.options.get("own_output"):
            self.output = nn.Linear(size, config.target.vocab_size, bias=False, device="meta")

    @property
    def state_size(self) -> int:
        return self.config.layers * self.config.target.hidden_size

    @property
    def lag(self) -> int:
        return self.config.layers - 1

    @property
    def alike(self) -> bool:
        return self.config.layers == 1

    def in_float32(self, name: str, dtype: torch.dtype) -> bool:
        return dtype in self._float32 and self._float32[dtype](name)

    def begin(self, hidden: Tensor, embedded: Tensor, places: Places) -> Tensor:
        if self.config.layers == 1:
            return self._given(0, hidden[:, :, 0], embedded, places)
        ages = torch.arange(hidden.shape[1]) if places.ages is None else places.ages
        reads, parts = hidden[:, :, 0], []
        for layer in range(self.config.layers):
            which = (ages >= layer).nonzero()[:, 0]
            there, out = which.to(hidden.device), torch.zeros_like(reads)
            if len(which):
                out[:, there] = self._given(layer, reads[:, there], embedded[:, there], places.of_layer(layer, which))
            parts += [out] if layer == 0 else []
            if layer + 1 < self.config.layers:
                parts.append(out if self._chained else reads)
                # the next layer reads with a token what is of the one before
                reads = torch.cat((torch.zeros_like(out[:, :1]), parts[-1][:, :-1]), 1)
        return torch.cat(parts, -1)

    def follow(self, states: Tensor, embedded: Tensor, depth: int, places: Places) -> Tensor:
        count, size = self.config.layers, self.config.target.hidden_size
        if count == 1:
            return self._given(0, states, embedded, places)
        # of the parent: what each layer reads
        reads = torch.split(states, size, -1)
        parts, which = [torch.zeros_like(reads[0])] * count, torch.arange(states.shape[1])
        for layer in range(depth, count):
            out = self._given(layer, reads[layer], embedded, places.of_layer(layer, which))
            if layer == depth:
                parts[0] = out
            if layer + 1 < count:
                parts[layer + 1] = out if self._chained else reads[layer]
        return torch.cat(parts, -1)

    def features(self, states: Tensor, depth: int) -> Tensor:
        return states[..., : self.config.target.hidden_size]

    @property
    def _chained(self) -> bool:
        return bool(self.config.options.get("feed", CHAIN) == CHAIN)

    def _given(self, layer: int, hidden: Tensor, embedded: Tensor, places: Places) -> Tensor:
        """What layer number `layer`, counted from 0, gives for tokens."""
        own = layer % len(self.join)
        joined = torch.cat((self.embedding_norm[own](embedded), self.hidden_norm[own](hidden)), dim=-1)
        given: Tensor = self.norm[own](self.layers.one(layer, self.join[own](joined), places))
        return given

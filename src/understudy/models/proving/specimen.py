"""A small model with random weights, texts for it, and the logits that transformers computes for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...seeds import seeded
from ...tree import TokenTree
from ..mixtures.token_routers import tables_of_tokens
from ..recurrent_layers.mixers import recurs
from ..stock import structure
from ..stock.shared_blocks import BLOCK
from ..stock.wrapper import text_config

SEED = 20260101
# Longer than a tile, and shorter: tiles end within a text, and one tile holds both.
PROMPTS = (41, 13)
# Of recurrent models: a state is folded while the one is read, and between levels of the other's tree.
LONG_PROMPTS = (196, 125)
# Four levels; siblings lie between a node and its parent, and all leaves are as deep.
PARENTS = (-1, 0, 0, 1, 2, 1, 3, 4, 5)
LEVELS = ((0, 1), (1, 3), (3, 6), (6, 9))
LEAVES = (6, 7, 8)
ACCEPTED = (0, 2, 4, 7)
# The logarithm of how fast a recurrent state forgets.
LOG_DECAY = "A_log"
# Buffers that stay as they are made: they are of each other.
MADE = ("slope_rate", "query_decay", "key_decay", "diagonal_decay")
# Of a copy: more would take more than seconds and 400 MB.
MOST_PARAMETERS = 96_000_000


class Unprovable(Exception):
    """A copy that cannot be compared: transformers does not run it, or it is too large."""


@dataclass(frozen=True)
class Text:
    """One of the texts that are compared. prompt, tree: token ids and a tree; last: a token after the accepted path."""

    prompt: list[int]
    tree: TokenTree
    last: int

    def paths(self) -> Tensor:
        """[leaves, tokens]: the prompt, the way to each leaf, and one more token."""
        ways = [self.tree.ancestors[leaf].nonzero().flatten() for leaf in LEAVES]
        return torch.tensor([[*self.prompt, *self.tree.tokens[way].tolist(), self.last] for way in ways])


@dataclass(frozen=True)
class Specimen:
    """A small model with random weights, texts for it, and what transformers makes of them."""

    # The transformers config of the small model.
    config: Any
    # What a checkpoint of it holds, by name.
    tensors: Mapping[str, Tensor]
    # The texts that are compared.
    texts: tuple[Text, ...]
    # [leaves, tokens, vocab] of each text: the logits along each of its paths.
    expected: tuple[Tensor, ...]

    @classmethod
    def of(cls, config: Any) -> Specimen:
        """The specimen of a small `config`. Raises what transformers raises, and Unprovable for nothing to compare with."""
        stock, texts = stock_copy(config), texts_for(config)
        return cls(config, _tensors(stock), texts, tuple(reference(stock, text) for text in texts))


def stock_copy(config: Any) -> nn.Module:
    """The stock model of a small `config` in float32 with random weights."""
    size = sum(p.numel() for p in structure.skeleton(config, torch.float32, "eager").parameters())
    if size > MOST_PARAMETERS:
        raise Unprovable(f"its smallest copy has {size:,} parameters")
    with torch.random.fork_rng(devices=[]):
        model = structure.stock(config)
    _randomise(model)
    return model


def _randomise(model: nn.Module) -> None:
    """Weights that keep activations near one, so that neither a softmax nor a norm hides a difference; biases and norms that do
    something; recurrent states that remember for some hundred tokens."""
    random = seeded(SEED)
    stored = model.state_dict(keep_vars=True)
    with torch.no_grad():
        held = {name: t for name, t in stored.items() if t.is_floating_point() and not t.is_meta}
        for name, tensor in {id(t): (name, t) for name, t in held.items()}.values():
            noise = torch.empty_like(tensor).normal_(generator=random)
            if name.endswith(MADE):
                continue
            if name.endswith(LOG_DECAY):
                tensor.copy_(noise * 0.5 - 5)
            elif tensor.dim() > 1:
                tensor.copy_(noise * 1.3 / tensor.shape[-1] ** 0.5)
            else:
                tensor.add_(noise, alpha=0.2)
        # which experts each token goes to
        for router in model.modules():
            for name in tables_of_tokens(router):
                table = router.get_buffer(name)
                order = torch.rand(len(table), router.num_experts, generator=random).argsort(dim=1)  # type: ignore[call-overload]
                table.copy_(order[:, : table.shape[1]])


def texts_for(config: Any) -> tuple[Text, ...]:
    """Random texts that hold the special tokens of `config` where they lie in its vocabulary."""
    config = text_config(config)
    random = seeded(SEED)
    vocabulary = config.vocab_size
    special = [getattr(config, name, None) for name in ("pad_token_id", "bos_token_id", "eos_token_id")]
    texts = []
    for count in LONG_PROMPTS if recurs(config) else PROMPTS:
        tokens = torch.randint(vocabulary, (count + len(PARENTS) + 1,), generator=random).tolist()
        for place, token in zip((2, 0, 5), special, strict=True):
            if isinstance(token, int) and 0 <= token < vocabulary:
                tokens[place] = token
        tree = TokenTree.of(tokens[count:-1], PARENTS)
        texts.append(Text(tokens[:count], tree, tokens[-1]))
    return tuple(texts)


def reference(stock: nn.Module, text: Text) -> Tensor:
    """[leaves, tokens, vocab]: the stock model's logits along each path. Raises Unprovable for none that can be compared."""
    ids = text.paths()
    with torch.inference_mode():
        logits: Tensor = stock(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    if not bool(torch.isfinite(logits).all()) or float(logits.std(-1).min()) < 1e-6:
        raise Unprovable("its logits are no numbers, or all alike")
    return logits


def _tensors(stock: Any) -> dict[str, Tensor]:
    """What a checkpoint of `stock` holds, by name: a head that is the embedding is not there again, nor is a block that layers
    share."""
    head, embedding = stock.get_output_embeddings(), stock.get_input_embeddings()
    tied = {f"{path}.weight" for path, m in stock.named_modules() if m is head and m.weight is embedding.weight}
    tied |= {name for name in stock.all_tied_weights_keys if BLOCK in name}
    from transformers.core_model_loading import revert_weight_conversion

    held = {name: tensor for name, tensor in stock.state_dict().items() if name not in tied and not tensor.is_meta}
    return dict(revert_weight_conversion(stock, held))

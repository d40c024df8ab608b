"""Draft heads: small trained modules that read hidden states of the target and say what it will say next.

A head sees a text x_0 x_1 ... as pairs: the target's hidden states at a token, and the embedding of the token after it. From
the pair (hidden states at x_j-1, x_j) it makes a *state* of x_j, from which its logits for the token after x_j come. Below the
last accepted token there are no hidden states of the target: there a node's state is made from its parent's and its own token.

Every kind of head is one subclass of `DraftHead`, found by name in HEADS. Drafters, suggesters and training know no kind by its
name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..models.streamed import CurrentPass
from ..models.taps import BEFORE_NORM as BEFORE_NORM

# What multiplies features [b, n, hidden size] with the target's own output head: logits [b, n, vocab].
Score = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TargetFacts:
    """The model that a head was trained for. What is empty or 0 is not known, and not compared."""

    hidden_size: int
    vocab_size: int
    # Decoder blocks.
    layers: int = 0
    # The class in its config, such as LlamaForCausalLM.
    architecture: str = ""
    # A digest of its weights: what a Store calls its identity.
    fingerprint: str = ""


@dataclass(frozen=True)
class HeadConfig:
    """What a head is, known before its weights are read."""

    # A name in HEADS.
    kind: str
    target: TargetFacts
    # Hidden states of the target that it reads, as numbers of `DrafterSpec.taps`.
    taps: tuple[int, ...]
    # Tokens that it can say; 0: all of the target's.
    draft_vocab_size: int = 0
    # Heads of Medusa and Clover, which is how deep they draft; 0: as deep as pays.
    heads: int = 0
    # Decoder layers with keys and values of their own, and the arguments of the LlamaConfig that describes one.
    layers: int = 0
    layer: dict[str, Any] = field(default_factory=dict)
    # Does it bring embeddings of its own, and not read the target's?
    own_embedding: bool = False
    # What one kind alone knows, such as EAGLE-3's norm_before_residual.
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Places:
    """Where the tokens of one call stand, for layers with attention."""

    # [b, n] positions of the tokens.
    positions: Tensor
    # For training: which tokens each one sees, as `torch.nn.functional.scaled_dot_product_attention` takes it. None where drafts
    # are made: keys and values then go to a cache, through the attention that the layers' config names.
    mask: Tensor | None = None
    # For training in several steps: a cache of transformers, to which layers add their keys and values and in which they see those
    # of the calls before, as `mask` says. None: a call sees its own tokens alone.
    cache: Any = None
    # [n] how many tokens of the same text stand right before each one in this call; None: all that come before it do.
    ages: Tensor | None = None
    # Where drafts are made: has layer number l take those tokens `which` [m], each l places earlier, into its cache.
    enter: Callable[[int, Tensor], None] | None = None

    def of_layer(self, layer: int, which: Tensor) -> Places:
        """The places of the tokens `which` [m], ascending, in a layer that has each token `layer` places earlier than the first."""
        if self.enter is not None:
            self.enter(layer, which)
        there = which.to(self.positions.device)
        mask = None if self.mask is None else self.mask[..., there, :][..., there]
        return Places(self.positions[:, there] - layer, mask, self.cache)


@dataclass(frozen=True)
class TargetWeights:
    """Weights of the target, of which those of a head begin as copies where the papers say so."""

    # [vocab, hidden size], its output head.
    output: Tensor
    # [hidden size], its final norm; None: it has none of this kind.
    norm: Tensor | None = None
    # Its last decoder block, by the names in it, such as mlp.up_proj.weight.
    layer: Mapping[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def copy_layer(self, layer: nn.Module) -> None:
        """Begin `layer` as the last block, as far as it has tensors of the same names and shapes."""
        for name, parameter in layer.named_parameters():
            if name in self.layer and self.layer[name].shape == parameter.shape:
                parameter.copy_(self.layer[name])

    @torch.no_grad()
    def copy_norm(self, norm: Any) -> None:
        """Begin `norm` as the final one, if that is known."""
        if self.norm is not None:
            norm.weight.copy_(self.norm)

    @torch.no_grad()
    def copy_output(self, output: Any, tokens: Tensor | None) -> None:
        """Begin the Linear `output` as the rows of the output head for `tokens` (None: all)."""
        output.weight.copy_(self.output if tokens is None else self.output[tokens.to(self.output.device)])


class DraftHead(nn.Module, ABC):
    """A trained head. All tensors have a leading batch dimension b, which is 1 where drafts are made."""

    # Do nodes below the last accepted token have keys and values in the layers' cache?
    attends_in_tree: ClassVar[bool] = False
    # [draft vocab] int64, the target's token for each of the head's; None: they are the same.
    token_map: Tensor | None
    # Multiplies features with an output head of its own; None: the target's is used. A pruned vocabulary always has one.
    output: nn.Module | None
    # [vocab, hidden size], the embeddings that it reads, which are not trained; None: the target's own.
    embedding: Tensor | None
    # Holds the pass that its layers hand their keys, values and attention to where drafts are made.
    current: CurrentPass

    def __init__(self, config: HeadConfig):
        super().__init__()
        self.config = config
        self.current = CurrentPass()
        size, target = config.draft_vocab_size, config.target
        self.register_buffer("token_map", torch.zeros(size, dtype=torch.int64) if size else None)
        self.output = nn.Linear(target.hidden_size, size, bias=False) if size else None
        table = torch.zeros(target.vocab_size, target.hidden_size) if config.own_embedding else None
        self.register_buffer("embedding", table)

    @property
    def needs_target_output(self) -> bool:
        """Are its logits those of the target's output head?"""
        return self.output is None

    @property
    def state_size(self) -> int:
        """Numbers in the state of a token."""
        return self.config.target.hidden_size

    @property
    def lag(self) -> int:
        """How many tokens later than the first layer the last one has keys and values of a text from its beginning on. Where a text
        is read on, so many of its last tokens are given again: what layers make of one, the next ones take with the token after."""
        return 0

    @property
    def alike(self) -> bool:
        """Are the states of all nodes below the last accepted token made in one way, however deep they lie?"""
        return self.attends_in_tree

    def in_float32(self, name: str, dtype: torch.dtype) -> bool:
        """Does the tensor `name` have float32 numbers though the head computes in `dtype`, as in the model that it is made for?"""
        return False

    def start(self, target: TargetWeights) -> None:
        """Take the values from which training begins, by the paper of this kind. Noise is of torch's global generator. The token
        map must have its values already."""
        if self.output is not None:
            target.copy_output(self.output, self.token_map)
        if self.embedding is not None:
            self.embedding.copy_(target.output)

    @abstractmethod
    def begin(self, hidden: Tensor, embedded: Tensor, places: Places) -> Tensor:
        """States [b, n, state size] of tokens with the embeddings `embedded` [b, n, hidden size].

        hidden: [b, n, taps, hidden size], the target's hidden states at the token before each."""

    @abstractmethod
    def follow(self, states: Tensor, embedded: Tensor, depth: int, places: Places) -> Tensor:
        """States [b, n, state size] of nodes `depth` edges below the last accepted token (1 or more), of which `embedded`
        [b, n, hidden size] are the embeddings and `states` [b, n, state size] those of their parents."""

    @abstractmethod
    def features(self, states: Tensor, depth: int) -> Tensor:
        """What an output head multiplies [b, n, hidden size], for the token after nodes with `states`, at `depth` (0: the last
        accepted token). They resemble what the target's own output head is given there."""

    def scores(self, states: Tensor, depth: int, score: Score) -> Tensor:
        """Logits [b, n, draft vocab] for the token after nodes with `states`, at `depth` (0: the last accepted token)."""
        features = self.features(states, depth)
        logits: Tensor = score(features) if self.output is None else self.output(features)
        return logits


HEADS = {
    "clover": "understudy.heads.clover:Clover",
    "clover2": "understudy.heads.clover2:Clover2",
    "eagle": "understudy.heads.eagle:Eagle",
    "eagle3": "understudy.heads.eagle3:Eagle3",
    "medusa": "understudy.heads.medusa:Medusa",
    "mtp": "understudy.heads.mtp:MtpHead",
}
"""Kind -> subclass of DraftHead, found through the registry."""

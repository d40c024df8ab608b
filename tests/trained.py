"""Heads that agree with a tiny model: trained for a second on the very texts that a test has it write."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from understudy.heads import DraftHead, HeadConfig, TargetFacts
from understudy.heads.files import built, save
from understudy.models.taps import BEFORE_NORM
from understudy.training.chains import Guess, PieceBatch, unrolled

LAYER = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 512,
}  # fmt: skip
FACTS = TargetFacts(64, 256, 3)
# By kind: what the config of a small head says. Those that see far have four parts, the others one decoder layer.
SHAPES: dict[str, dict[str, Any]] = {
    "medusa": {"taps": (-1,), "heads": 4},
    "clover": {"taps": (BEFORE_NORM,), "heads": 4, "layers": 1, "layer": LAYER},
    "clover2": {"taps": (BEFORE_NORM,), "heads": 4, "layers": 2, "layer": LAYER},
    "eagle": {"taps": (-1,), "layers": 1, "layer": LAYER},
    "eagle3": {"taps": (0, 1, 2), "layers": 1, "layer": LAYER, "draft_vocab_size": 255},
}
DEPTHS, STEPS = 3, 60


def config(kind: str, **changes: Any) -> HeadConfig:
    return HeadConfig(kind, **{"target": FACTS, **SHAPES[kind], **changes})


def states_of(model: Any, tokens: Tensor, taps: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Hidden states [b, n, taps, hidden size] of tokens [b, n], and features [b, n, hidden size]."""
    before: list[Tensor] = []
    hook = model.model.layers[-1].register_forward_hook(lambda *given: before.append(given[-1]))
    with torch.no_grad():
        states = model(tokens, output_hidden_states=True).hidden_states
    hook.remove()
    return torch.stack([before[0] if tap == BEFORE_NORM else states[tap] for tap in taps], 2), states[-1]


def agreeing(directory: Path, model: Path, kind: str, texts: Sequence[Sequence[int]], **changes: Any) -> DraftHead:
    """A head of this `kind` for the checkpoint `model`, saved in `directory`. `texts` are of one length."""
    torch.manual_seed(0)
    stock = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval().requires_grad_(False)
    head = built(config(kind, **changes))
    for name, tensor in head.named_parameters():
        if tensor.dim() > 1 and "norm" not in name:
            nn.init.normal_(tensor, std=0.1)
    if head.token_map is not None:
        head.token_map.copy_(torch.arange(1, 256))
    tokens = torch.tensor([list(text) for text in texts])
    hidden, features = states_of(stock, tokens, head.config.taps)
    batch = PieceBatch(tokens, torch.ones_like(tokens, dtype=torch.bool), hidden, features)
    optimizer = torch.optim.Adam([p for p in head.parameters() if p.requires_grad], 5e-3)

    def told(guess: Guess) -> Tensor:
        return nn.functional.pad(tokens[:, 2 + guess.depth :], (0, 1 + guess.depth))

    for _ in range(STEPS):
        loss = torch.zeros(())
        for guess in unrolled(head, stock.model.embed_tokens, batch, DEPTHS, told):
            known = tokens[:, 2 + guess.depth :]
            scores = head.scores(guess.states[:, : known.shape[1]], guess.depth, stock.lm_head)
            wanted = known if head.token_map is None else (known - 1).clamp(min=0)
            loss = loss + nn.functional.cross_entropy(scores.flatten(0, 1), wanted.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save(head.requires_grad_(False), directory)
    return head

"""Chains below all tokens at once are those that are drafted one by one."""

import pytest
import torch
from torch import Tensor

from understudy.heads import DraftHead, HeadConfig, Places, TargetFacts
from understudy.heads.files import built
from understudy.training.chains import Guess, PieceBatch, shifted, unrolled

SIZE = 16
LAYER = {
    "hidden_size": SIZE, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
}  # fmt: skip
KINDS = {
    "eagle": {"taps": (-1,), "layers": 2}, "eagle3": {"taps": (0, 1, 2), "layers": 1, "draft_vocab_size": 9},
    "clover": {"taps": (-1,), "layers": 1, "heads": 3}, "clover2": {"taps": (-1,), "layers": 2, "heads": 3},
    "medusa": {"taps": (-1,), "heads": 3},
}  # fmt: skip


def head_of(kind: str) -> DraftHead:
    torch.manual_seed(3)
    head = built(HeadConfig(kind, TargetFacts(SIZE, 9), layer=LAYER, **KINDS[kind]))
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.3)
    return head.eval()


def batch_of(taps: int, rows: int = 2, length: int = 8) -> PieceBatch:
    torch.manual_seed(5)
    hidden = torch.randn(rows, length, taps, SIZE)
    counted = torch.ones(rows, length, dtype=torch.bool)
    return PieceBatch(torch.randint(9, (rows, length)), counted, hidden, torch.randn(rows, length, SIZE))


TABLE = torch.randn(9, SIZE, generator=torch.Generator().manual_seed(1))


def embed(tokens: Tensor) -> Tensor:
    return TABLE[tokens]


def alone(head: DraftHead, batch: PieceBatch, root: int, chain: list[int]) -> list[Tensor]:
    """The states below token `root` of the first piece: of that, and of nodes with the tokens of `chain`, each made by running all
    tokens before it again, as plain causal attention."""
    states: list[Tensor] = []
    text = batch.tokens[:1, 1 : root + 1]
    for count in range(len(chain) + 1):
        n = root + count
        mask = torch.ones(n, n, dtype=torch.bool).tril()[None, None]
        positions = torch.arange(1, n + 1)[None]
        if count == 0:
            states.append(head.begin(batch.hidden[:1, :root], embed(text), Places(positions, mask))[:, -1])
        elif not head.attends_in_tree:
            embedded = embed(torch.tensor([[chain[count - 1]]]))
            states.append(head.follow(states[-1][:, None], embedded, count, Places(positions))[:, 0])
        else:
            states.append(_with_attention(head, batch, text, chain[:count], states, mask))
    return states


def _with_attention(
    head: DraftHead, batch: PieceBatch, text: Tensor, chain: list[int], states: list[Tensor], mask: Tensor
) -> Tensor:
    """The state of the last node of `chain`: true pairs, then the nodes with their parents' states, as one causal text."""
    from transformers import DynamicCache

    cache = DynamicCache()
    root, n = text.shape[1], text.shape[1] + len(chain)
    head.begin(batch.hidden[:1, :root], embed(text), Places(torch.arange(1, root + 1)[None], mask[:, :, :root, :root], cache))
    parents = torch.stack(states, 1)
    places = Places(torch.arange(root + 1, n + 1)[None], mask[:, :, root:], cache)
    return head.follow(parents, embed(torch.tensor([chain])), len(chain), places)[:, -1]


@pytest.mark.parametrize("kind", KINDS)
def test_each_chain_sees_the_text_up_to_its_root_and_itself(kind: str) -> None:
    head = head_of(kind)
    batch = batch_of(len(head.config.taps))
    tokens = torch.randint(9, (3, 2, 7), generator=torch.Generator().manual_seed(2))

    def choose(guess: Guess) -> Tensor:
        return tokens[guess.depth]

    with torch.no_grad():
        found = list(unrolled(head, embed, batch, 3, choose))
        assert [guess.depth for guess in found] == [0, 1, 2]
        for root in (1, 4, 7):
            for guess, wanted in zip(found, alone(head, batch, root, tokens[:2, 0, root - 1].tolist()), strict=True):
                torch.testing.assert_close(guess.states[0, root - 1], wanted[0], rtol=1e-4, atol=1e-5)


def test_a_head_with_embeddings_of_its_own_reads_those() -> None:
    head = head_of("clover2")
    batch = batch_of(1)
    first = next(unrolled(head, embed, batch, 1, lambda guess: guess.states))
    head.embedding = TABLE.clone()
    second = next(unrolled(head, lambda tokens: embed(tokens) * 0, batch, 1, lambda guess: guess.states))
    assert torch.equal(first.states, second.states)


def test_shifting_moves_to_the_front_and_fills_up_with_nothing() -> None:
    x = torch.tensor([[1, 2, 3, 4]])
    assert [shifted(x, by).tolist() for by in (1, 2, 4, 9)] == [[[2, 3, 4]], [[3, 4, 0]], [[0, 0, 0]], [[0, 0, 0]]]

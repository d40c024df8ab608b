"""A model that proposes begins where its cache ends, and keeps nothing of its own."""

from types import SimpleNamespace
from typing import Any

import torch

from understudy.drafters.proposer import ModelProposer
from understudy.sequence import TokenSequence
from understudy.tree import Nodes, TokenTree


def test_it_runs_the_model_from_the_end_of_each_row() -> None:
    ran: list[Nodes] = []
    logits = torch.randn(2, 5)

    def draft(nodes: Nodes) -> torch.Tensor:
        ran.append(nodes)
        return logits

    cache = SimpleNamespace(lengths=[4, 0, 7], deepest=24)
    model: Any = SimpleNamespace(cache=cache, device="here", draft=draft)
    proposer = ModelProposer(model)
    assert proposer.deepest == 24, "trees are no deeper than the cache can take back"
    assert proposer.prepare([TokenSequence(2, [1]), TokenSequence(0, [1])]) == [7, 4]
    nodes = Nodes.of(TokenTree.chain([1, 2]), 0, 4)
    assert proposer.forward(nodes) is logits and ran == [nodes] and proposer.device == "here"
    proposer.rewind(TokenSequence(2, [1]), 3)
    assert cache.lengths == [4, 0, 7], "whoever verifies keeps this cache in step"

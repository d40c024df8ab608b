"""A widened head drafts for a stand-in what the small one drafts for the small model."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import standin
import widen_head
from tests.heads.golden import HIDDEN, LAYER, VOCABULARY, randomized
from understudy.heads import DraftHead, HeadConfig, Places, TargetFacts
from understudy.heads.files import built, config_of, load, save
from understudy.heads.held import Holding

K = 3
LAYERS = 6
FACTS = TargetFacts(HIDDEN, VOCABULARY, LAYERS, "LlamaForCausalLM", "small")
CONFIGS = {
    "medusa": HeadConfig("medusa", FACTS, (-1,), heads=3, options={"blocks": 2}),
    "medusa of its own outputs": HeadConfig("medusa", FACTS, (-1,), heads=3, options={"own_outputs": True}),
    "clover": HeadConfig("clover", FACTS, (-1,), heads=3, layers=1, layer=LAYER),
    "clover2": HeadConfig("clover2", FACTS, (-1,), heads=3, layers=2, layer=LAYER, own_embedding=True),
    "eagle": HeadConfig("eagle", FACTS, (-1,), layers=2, layer=LAYER, options={"last_norm": True}),
    "eagle3": HeadConfig("eagle3", FACTS, (2, 3, 3), 12, layers=2, layer=LAYER, options={"norm_before_fc": True, "fc_norm": True}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """A small model and its stand-in, in float32."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    config = LlamaConfig(**LAYER, num_hidden_layers=LAYERS, vocab_size=VOCABULARY, initializer_range=0.3)
    LlamaForCausalLM(config).save_pretrained(folder / "small")
    standin.make(folder / "small", folder / "wide", standin.Widening(K, 2.0, "float32"))
    small, wide = (AutoModelForCausalLM.from_pretrained(folder / name).eval() for name in ("small", "wide"))
    return small, wide


@torch.no_grad()
def drafted(model: LlamaForCausalLM, head: DraftHead) -> Tensor:
    """Logits of a chain of three levels below each token of a text."""
    tokens = torch.arange(11)[None] * 3 % VOCABULARY
    states = model(tokens, output_hidden_states=True).hidden_states
    assert states is not None
    hidden = torch.stack([states[tap] for tap in head.config.taps], 2)[:, :-1]
    table = model.model.embed_tokens.weight if head.embedding is None else head.embedding
    embedded = table[tokens[:, 1:]]
    count = embedded.shape[1]
    places = Places(torch.arange(count)[None], torch.ones(count, count, dtype=torch.bool).tril())
    state = head.begin(hidden, embedded, places)
    logits = [head.scores(state, 0, model.lm_head)]
    for depth in (1, 2):
        state = head.follow(state, embedded.roll(-depth, 1), depth, places)
        logits.append(head.scores(state, depth, model.lm_head))
    return torch.stack(logits)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_widened_head_gives_the_same_logits(kind: str, models: tuple[LlamaForCausalLM, LlamaForCausalLM]) -> None:
    head = randomized(built(CONFIGS[kind]))
    wide = widen_head.widened(head, K)
    assert wide.config.target.hidden_size == K * HIDDEN and wide.config.target.fingerprint == ""
    torch.testing.assert_close(drafted(models[1], wide), drafted(models[0], head), rtol=2e-3, atol=2e-3)


def test_the_command_writes_a_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = randomized(built(CONFIGS["eagle"]))
    save(head, tmp_path / "small")
    arguments = ["widen_head", str(tmp_path / "small"), "--output", str(tmp_path / "wide"), "--widen", "2", "--dtype", "float32"]
    monkeypatch.setattr(sys, "argv", arguments)
    widen_head.main()
    assert config_of(tmp_path / "wide") == widen_head.configuration(head.config, 2)
    expected = widen_head.widened(head, 2).state_dict()
    again = load(tmp_path / "wide", Holding(torch.float32)).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.items())
    monkeypatch.setattr(sys, "argv", [arguments[0], str(tmp_path / "nothing"), *arguments[2:]])
    with pytest.raises(SystemExit, match="widen_head: There is no head in"):
        widen_head.main()

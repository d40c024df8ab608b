"""A specimen shows differences: weights that matter, texts that branch and hold special tokens, logits worth comparing."""

import pytest
import torch
from transformers import AutoConfig

from tests.tiny import COMMON
from understudy.models.proving.shrink import shrunk
from understudy.models.proving.specimen import (
    ACCEPTED,
    LEAVES,
    LEVELS,
    PARENTS,
    PROMPTS,
    Specimen,
    Unprovable,
    reference,
    texts_for,
)
from understudy.models.target import TILE


def made(kind: str = "llama", **changes: object) -> Specimen:
    return Specimen.of(shrunk(AutoConfig.for_model(kind, **{**COMMON, **changes})))


def test_no_weight_is_left_at_a_value_that_hides_it() -> None:
    tensors = made(attention_bias=True, mlp_bias=True).tensors
    assert all(float(tensor.std()) > 0.01 for tensor in tensors.values())
    assert {name.rsplit(".", 1)[-1] for name in tensors} == {"weight", "bias"}


def test_a_tied_head_is_stored_once_and_another_under_the_checkpoints_name() -> None:
    assert "lm_head.weight" not in made(tie_word_embeddings=True).tensors
    assert "lm_head.weight" in made().tensors
    neox = made("gpt_neox", num_key_value_heads=None).tensors
    assert "embed_out.weight" in neox and "lm_head.weight" not in neox


def test_texts_end_within_tiles_branch_and_hold_the_special_tokens() -> None:
    config = shrunk(AutoConfig.for_model("llama", vocab_size=32000, pad_token_id=5, bos_token_id=1, eos_token_id=None))
    texts = texts_for(config)
    assert PROMPTS[0] > TILE > PROMPTS[1] and sum(PROMPTS) % TILE
    for text in texts:
        assert {1, 5} <= set(text.prompt)
        assert not text.tree.is_chain
        assert {int(text.tree.depths[leaf]) for leaf in LEAVES} == {len(LEVELS) - 1}
        assert [int(text.tree.parents[node]) for node in ACCEPTED] == [-1, *ACCEPTED[:-1]]
        assert [int(text.tree.depths[first]) for first, _ in LEVELS] == [0, 1, 2, 3] and LEVELS[-1][1] == len(PARENTS)
    assert texts[0].paths().shape == (len(LEAVES), PROMPTS[0] + len(LEVELS) + 1)


def test_what_is_expected_differs_from_token_to_token() -> None:
    expected = made().expected[0]
    assert float(expected.std(-1).min()) > 0.1
    chosen = expected[0].argmax(-1)
    assert len(set(chosen.tolist())) > len(chosen) // 2


def test_logits_that_are_all_alike_prove_nothing() -> None:
    specimen = made()

    class Silent(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, **_: object) -> object:
            return type("Output", (), {"logits": torch.zeros(*input_ids.shape, 7)})

    with pytest.raises(Unprovable, match="alike"):
        reference(Silent(), specimen.texts[0])

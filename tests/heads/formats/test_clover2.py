"""Clover-2 as the code of its authors saves it."""

from pathlib import Path

import pytest
import torch

from tests.heads.formats.publish import LLAMA, assert_same, named, publish
from tests.heads.golden import FACTS, HIDDEN, LAYER, VOCABULARY, assert_golden, randomized
from tests.heads.test_clover2 import reference
from understudy.errors import CheckpointError
from understudy.heads import BEFORE_NORM, HeadConfig
from understudy.heads.clover2 import Clover2
from understudy.heads.files import load
from understudy.heads.held import Holding

NAMES = {
    "clover_head_mlp_rnn.input_layernorm.": "first_decoder.norm.", "clover_head_mlp_rnn.q.": "first_decoder.query.",
    "clover_head_mlp_rnn.k.": "first_decoder.key.", "clover_head_mlp_rnn.v.": "first_decoder.value.",
    "clover_head_mlp_rnn2.input_layernorm.": "decoder.norm.", "clover_head_mlp_rnn2.q.": "decoder.query.",
    "clover_head_mlp_rnn2.k.": "decoder.key.", "clover_head_mlp_rnn2.v.": "decoder.value.",
    "clover_head_mlp.": "first_projection.", "clover_head_mlp2.": "projection.", "clover_norm.": "norm.",
    "clover_head_norm.": "head_norm.", "clover_embed_tokens.weight": "embedding",
}  # fmt: skip
CLOVER = {"num_heads": 5, "num_layers": 2, "heads_coefficient": 1.0, "decay_coefficient": 0.7}


def test_a_published_head_is_read(tmp_path: Path) -> None:
    config = HeadConfig("clover2", FACTS, (BEFORE_NORM,), heads=5, layers=2, layer=LAYER, own_embedding=True)
    head = randomized(Clover2(config))
    tensors = named(head, NAMES) | {"lm_head.weight": torch.randn(VOCABULARY, HIDDEN)}
    told = {name: entry for name, entry in LLAMA.items() if name != "rope_theta"}
    path = publish(tmp_path / "head", told | {"clover": CLOVER}, tensors)
    again = assert_same(path, head)
    assert again.embedding is not None and again.config.layer["rope_parameters"]["rope_theta"] == 10000.0
    # Its code's rotary base is always that, and the golden values' is another.
    layer = again.config.layer | {"rope_parameters": LAYER["rope_parameters"]}
    same = Clover2(HeadConfig("clover2", FACTS, (BEFORE_NORM,), heads=5, layers=2, layer=layer, own_embedding=True))
    same.load_state_dict(again.state_dict())
    assert_golden(same, lambda *given: reference(head, *given), depth=3)
    for wrong, said in (({}, "None for clover"), ({"clover": {"num_heads": 5}}, "None for num_layers")):
        publish(path, LLAMA | wrong, tensors)
        with pytest.raises(CheckpointError, match=said):
            load(path, Holding(torch.float32))
    del tensors["clover_embed_tokens.weight"]
    publish(path, LLAMA | {"clover": CLOVER}, tensors)
    with pytest.raises(CheckpointError, match="lacks its embeddings"):
        load(path, Holding(torch.float32))

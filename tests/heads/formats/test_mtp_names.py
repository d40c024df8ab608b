"""Names of layers for multi-token prediction, in each way in which they are published, and back again."""

import pytest

from understudy.heads.formats.mtp_names import ANY, Naming, named, published
from understudy.heads.mtp import CHAIN, MODEL

BLOCKS = 4
INNER = "layers.0.self_attn.q_proj.weight"
NORMS = "layers.0.post_attention_layernorm.weight"
# By way: a prefix of names, and what each of ours is called in layers 0 and 1.
WAYS = {
    "together": {
        "embedding_norm.0.weight": ("mtp.pre_fc_norm_embedding.weight",) * 2, "join.0.weight": ("mtp.fc.weight",) * 2,
        "norm.0.weight": ("mtp.norm.weight",) * 2,
        INNER: ("mtp.layers.0.self_attn.q_proj.weight", "mtp.layers.1.self_attn.q_proj.weight"),
    },
    "numbered on": {
        "embedding_norm.0.weight": ("model.layers.4.enorm.weight", "model.layers.5.enorm.weight"),
        "norm.0.weight": ("model.layers.4.shared_head.norm.weight", "model.layers.5.shared_head.norm.weight"),
        "output.weight": ("model.layers.4.shared_head.head.weight", "model.layers.5.shared_head.head.weight"),
        INNER: ("model.layers.4.self_attn.q_proj.weight", "model.layers.5.self_attn.q_proj.weight"),
    },
    "MiMo-V2": {
        "join.0.weight": ("model.mtp.layers.0.eh_proj.weight", "model.mtp.layers.1.eh_proj.weight"),
        "norm.0.weight": ("model.mtp.layers.0.final_layernorm.weight", "model.mtp.layers.1.final_layernorm.weight"),
        NORMS: ("model.mtp.layers.0.pre_mlp_layernorm.weight", "model.mtp.layers.1.pre_mlp_layernorm.weight"),
    },
    "ERNIE 4.5": {
        "embedding_norm.0.weight": ("model.mtp_emb_norm.0.weight", "model.mtp_emb_norm.1.weight"),
        "hidden_norm.0.weight": ("model.mtp_hidden_norm.0.weight", "model.mtp_hidden_norm.1.weight"),
        "join.0.weight": ("model.mtp_linear_proj.0.weight", "model.mtp_linear_proj.1.weight"),
        INNER: ("model.mtp_block.0.self_attn.q_proj.weight", "model.mtp_block.1.self_attn.q_proj.weight"),
    },
}  # fmt: skip


def of(way: str) -> Naming:
    return named([name for theirs in WAYS[way].values() for name in dict.fromkeys(theirs)], BLOCKS)


@pytest.mark.parametrize("way", WAYS)
def test_each_way_of_naming_is_known(way: str) -> None:
    naming = of(way)
    assert set(naming.layers) == {0, 1}
    own = {"norm.0.weight": "model.norm.weight"} if way == "ERNIE 4.5" else {}
    for layer in range(2):
        assert naming.of(layer) == own | {ours: theirs[layer] for ours, theirs in WAYS[way].items()}
    assert naming.feed == (MODEL if way == "MiMo-V2" else CHAIN)
    assert bool(naming.common) == (way == "together") and bool(naming.kinds) == (way == "MiMo-V2")


@pytest.mark.parametrize("way", WAYS)
def test_what_lacks_is_called_as_the_checkpoint_would_call_it(way: str) -> None:
    for layer in range(2):
        for ours, theirs in WAYS[way].items():
            for other, beside in WAYS[way].items():
                # a tensor that all layers have in common does not tell of which layer another one is
                if way != "MiMo-V2" and (way != "together" or "layers" in other):
                    assert published(ours, beside[layer]) == theirs[layer], (ours, other)
    assert published("norm.0.weight", "model.mtp.layers.1.eh_proj.weight") == "model.mtp.layers.1.final_layernorm.weight"
    assert published("norm.0.weight", "model.mtp_block.1.mlp.up_proj.weight") == "model.norm.weight"


def test_the_models_own_layers_are_none() -> None:
    names = ["model.layers.3.self_attn.q_proj.weight", "model.norm.weight", "lm_head.weight", "model.visual.mtp_like.weight"]
    assert named(names, BLOCKS).layers == {}
    assert ANY.search(names[-1]) and not any(ANY.search(name) for name in names[:-1])

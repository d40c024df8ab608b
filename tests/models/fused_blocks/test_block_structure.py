"""Parts of blocks are found by the names of their children, and blocks with others are left alone."""

import pytest
import torch
from torch import nn

from understudy.kernels.head_form import Made
from understudy.models.fused_blocks.block_structure import (
    MlpModules,
    attention_modules,
    block_modules,
    mlp_modules,
    usual_blocks,
    usual_mlps,
)


class Named(nn.Module):
    """Children by name, and what else it has."""

    def __init__(self, *names: str, **others: object) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, nn.Linear(1, 1))
        for name, other in others.items():
            setattr(self, name, other)


def attention(*more: str) -> nn.Module:
    return Named("q_proj", "k_proj", "v_proj", "o_proj", *more, layer_idx=5)


def block(*norms: str, **others: object) -> nn.Module:
    return Named(*norms, **{"self_attn": attention(), "mlp": Named("gate_proj", "up_proj", "down_proj"), **others})


@pytest.mark.parametrize(
    ("names", "before", "after"),
    [
        (("input_layernorm", "post_attention_layernorm"), ("input_layernorm", ""), ("post_attention_layernorm", "")),
        (
            ("post_attention_layernorm", "post_feedforward_layernorm"),
            ("", "post_attention_layernorm"),
            ("", "post_feedforward_layernorm"),
        ),
        (
            ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
            ("input_layernorm", "post_attention_layernorm"),
            ("pre_feedforward_layernorm", "post_feedforward_layernorm"),
        ),
        (
            ("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"),
            ("input_layernorm", "post_self_attn_layernorm"),
            ("post_attention_layernorm", "post_mlp_layernorm"),
        ),
    ],
)  # fmt: skip
def test_norms_are_told_by_all_of_their_names(names: tuple[str, ...], before: tuple[str, str], after: tuple[str, str]) -> None:
    found = block_modules(stock := block(*names, dropout=nn.Dropout(), residual_multiplier=0.5))
    assert found is not None and found.times == 0.5 and found.layer == 5
    assert found.norms == tuple(getattr(stock, name) if name else None for name in (*before, *after))
    assert found.second is (getattr(stock, after[0]) if after[0] else stock.mlp)


@pytest.mark.parametrize(
    "stock",
    [
        block("input_layernorm"),
        block("input_layernorm", "post_attention_layernorm", "extra"),
        block("input_layernorm", "post_attention_layernorm", self_attn=attention("g_proj")),
        block("input_layernorm", "post_attention_layernorm", self_attn=attention("q_norm")),
        Named("input_layernorm", "post_attention_layernorm", "mlp"),
        nn.Linear(1, 1),
    ],
)
def test_a_block_of_other_parts_is_none(stock: nn.Module) -> None:
    assert block_modules(stock) is None


def test_attention_may_have_one_linear_for_all_and_norms_of_heads() -> None:
    found = attention_modules(stock := Named("qkv_proj", "o_proj", "q_norm", "k_norm", layer_idx=1))
    assert found is not None and found.linears == (stock.qkv_proj,) and found.norms == (stock.q_norm, stock.k_norm, None)
    assert found.made is Made.ALL and found.shared_as == ""
    assert attention_modules(None) is None and attention_modules(Named("qkv_proj", "o_proj")) is None


def test_attention_may_have_no_values_or_queries_alone() -> None:
    norms = ("q_norm", "k_norm", "v_norm")
    stored: dict[str, object] = {"store_full_length_kv": True, "layer_type": "full_attention"}
    found = attention_modules(stock := Named("q_proj", "k_proj", "o_proj", *norms, layer_idx=1, **stored))
    assert found is not None and found.made is Made.ONE_FOR_BOTH and found.linears == (stock.q_proj, stock.k_proj)
    assert found.norms == (stock.q_norm, stock.k_norm, stock.v_norm) and found.shared_as == "full_attention"
    found = attention_modules(stock := Named("q_proj", "o_proj", "q_norm", layer_idx=1, layer_type="full_attention"))
    assert found is not None and found.made is Made.QUERIES and found.norms == (stock.q_norm, None, None)
    assert found.shared_as == ""
    for odd in (("q_proj", "o_proj", *norms[:2]), ("q_proj", "k_proj", "o_proj", "q_norm")):
        assert attention_modules(Named(*odd, layer_idx=1)) is None


FOUR = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")


def test_a_block_may_have_a_third_part_and_a_factor() -> None:
    further = ("per_layer_input_gate", "per_layer_projection", "post_per_layer_input_norm")
    alone = block_modules(block(*FOUR, layer_scalar=torch.full((1,), 0.5)))
    assert alone is not None and alone.scale == 0.5 and alone.further is None
    found = block_modules(stock := block(*FOUR, *further, act_fn=nn.SiLU(), layer_scalar=torch.full((1,), 0.5)))
    assert found is not None and found.scale == 1 and found.further is not None and found.further.scale == 0.5
    x, beside = torch.randn(1, 3, 1), torch.randn(1, 3, 1)
    gate, projection, norm = (getattr(stock, name) for name in further)
    wanted = (x + norm(projection(nn.functional.silu(gate(x)) * beside))) / 2
    assert torch.allclose(found.further(x, beside), wanted)
    assert block_modules(block(*FOUR, *further)) is None, "nothing tells how its gate opens"


def test_experts_may_stand_beside_an_mlp() -> None:
    beside = ("post_feedforward_layernorm_1", "pre_feedforward_layernorm_2", "post_feedforward_layernorm_2")
    found = block_modules(stock := block(*FOUR, *beside, router=nn.Identity(), experts=nn.Identity()))
    assert found is None, "they are no modules of their own"
    mixed: dict[str, object] = {"router": Named("proj"), "experts": Named("up")}
    found = block_modules(stock := block(*FOUR, *beside, **mixed))
    assert found is not None and found.experts is not None and found.mlp is stock.mlp
    assert (found.experts.router, found.experts.after) == (stock.router, stock.post_feedforward_layernorm_2)


def test_a_gated_mlp_has_two_linears_or_one_before_the_last() -> None:
    act = nn.SiLU()
    for gated, down in ((("gate_proj", "up_proj"), "down_proj"), (("gate_up_proj",), "down_proj"), (("w1", "w3"), "w2")):
        found = mlp_modules(stock := Named(*gated, down, act_fn=act))
        assert found is not None and found.act is act and found.down is getattr(stock, down)
        assert found.gated == tuple(getattr(stock, name) for name in gated)
    found = mlp_modules(Named("w1", "w3", "w2"))
    assert found is not None and found.act is None
    assert mlp_modules(Named("up_proj", "down_proj")) is None and mlp_modules(Named("experts", "gate")) is None


def test_a_gated_mlp_gives_what_its_modules_give() -> None:
    gate, up, down, x = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4), torch.randn(2, 3, 4)
    wanted = down(nn.functional.silu(gate(x)) * up(x))
    both = nn.Linear(4, 12)
    both.weight, both.bias = (nn.Parameter(torch.cat(two)) for two in ((gate.weight, up.weight), (gate.bias, up.bias)))
    for parts in (MlpModules((gate, up), down, nn.SiLU()), MlpModules((gate, up), down, None), MlpModules((both,), down, None)):
        assert torch.allclose(parts(x), wanted, atol=1e-6)


def test_they_are_found_in_the_order_of_the_model_wherever_they_stand() -> None:
    first, second = (block("input_layernorm", "post_attention_layernorm") for _ in range(2))
    model = nn.ModuleDict({"layers": nn.ModuleList([first, second]), "shared": Named("w1", "w3", "w2")})
    assert list(usual_blocks(model)) == [first, second]
    assert list(usual_mlps(model)) == [first.mlp, second.mlp, model["shared"]]

"""Experts of a head's layers: each row meets the matrices of those it goes to alone, held whole or with few bits."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig

from tests.heads.golden import randomized
from tests.tiny import COMMON, MIXTURES
from understudy.devices.processor import Processor
from understudy.drafters.trained import head_memory
from understudy.errors import CheckpointError
from understudy.heads import DraftHead, HeadConfig, Places, TargetFacts
from understudy.heads.experts import HeldExperts, experts_of_heads, head_experts
from understudy.heads.files import built
from understudy.heads.held import Holding, hold, tensor_bytes
from understudy.heads.tensors import Values
from understudy.models.mixtures.expert_copies import expert_copies
from understudy.models.mixtures.experts import mixes

DEVICE = Processor()
PRODUCTS: dict[str, Any] = {"multiply": DEVICE.draft_product, "experts": partial(expert_copies, device=DEVICE)}
COUNT = 9


def config_of(family: str, **changes: Any) -> HeadConfig:
    """Of a head of one layer, the last of the family's tiny model."""
    options = {**COMMON, **MIXTURES[family], **changes}
    layer = AutoConfig.for_model(options.pop("model_type", family), **options).to_dict()
    return HeadConfig("mtp", TargetFacts(64, 256), taps=(-1,), layers=1, layer=layer)


def whole(config: HeadConfig) -> DraftHead:
    head = built(config, "meta").to_empty(device="cpu")
    for tensor in (*head.parameters(), *head.buffers()):
        tensor.data.zero_()
    return randomized(head)


def held(head: DraftHead, bits: int, dtype: torch.dtype = torch.float32) -> DraftHead:
    def values() -> Iterator[tuple[str, Values]]:
        for name, tensor in head.state_dict().items():
            yield name, Values.of(tensor)

    return hold(built(head.config, "meta"), values(), Holding(dtype, bits=bits, **PRODUCTS))


def states(head: DraftHead, rows: slice = slice(None)) -> Tensor:
    """Of tokens that do not see each other."""
    generator = torch.Generator().manual_seed(3)
    hidden, embedded = torch.randn(2, 1, COUNT, 64, generator=generator)[:, :, rows]
    count = hidden.shape[1]
    places = Places(torch.zeros(1, count, dtype=torch.int64), torch.eye(count, dtype=torch.bool))
    dtype = head.state_dict()["norm.0.weight"].dtype
    return head.begin(hidden[:, :, None].to(dtype), embedded.to(dtype), places)[0]


def experts_in(head: DraftHead) -> Any:
    (found,) = (module for module in head.modules() if mixes(module))
    return found


@pytest.mark.parametrize(("family", "bits", "error"), [
    ("qwen3_next", 16, 1e-6), ("qwen3_next", 8, 0.03), ("qwen3_next", 4, 0.2), ("deepseek_v3", 8, 0.03), ("glm4_moe", 8, 0.03),
])  # fmt: skip
def test_few_bits_say_nearly_the_same(family: str, bits: int, error: float) -> None:
    head = whole(config_of(family))
    few = experts_in(held(head, bits))
    x, chosen, weights = torch.randn(COUNT, 64), torch.arange(2 * COUNT).view(COUNT, 2) % 8, torch.rand(COUNT, 2)
    found, wanted = (head_experts(experts, x, chosen, weights) for experts in (few, experts_in(head)))
    relative = float((found - wanted).norm() / wanted.norm())
    assert (bits == 16 or error / 10 <= relative) and relative <= error, relative
    kinds = {name: type(part) for name, part in few.named_children()}
    assert [name for name, kind in kinds.items() if kind is HeldExperts] == (["gate_up_proj", "down_proj"] if bits < 16 else [])


@pytest.mark.parametrize("bits", [16, 8])
def test_a_row_multiplies_by_the_experts_that_it_goes_to_alone(bits: int) -> None:
    """All others are changed."""
    head, row = whole(config_of("qwen3_next")), slice(2, 3)
    few = held(head, bits)
    chosen: list[Tensor] = []
    (router,) = (module for name, module in few.named_modules() if name.endswith("mlp.gate"))
    router.register_forward_hook(lambda module, given, made: chosen.append(made[2]))
    wanted, experts = states(few, row), experts_in(head)
    met = {*chosen[0].flatten().tolist()}
    assert len(met) == 2
    for expert in {*range(8)} - met:
        experts.gate_up_proj.data[expert] = experts.down_proj.data[expert] = 1e3
    again = held(head, bits)
    assert torch.equal(states(again, row), wanted) and not torch.equal(states(again), states(few))


def test_a_rows_state_depends_on_no_other_row() -> None:
    head = held(whole(config_of("glm4_moe")), 8)
    together = states(head)
    for row in range(COUNT):
        assert torch.allclose(states(head, slice(row, row + 1))[0], together[row], atol=1e-5)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_the_plan_counts_what_is_held(bits: int) -> None:
    config = config_of("deepseek_v3")
    head = held(whole(config), bits, torch.bfloat16)
    tensors = sum(tensor.nbytes for tensor in head.state_dict().values())
    assert tensor_bytes(built(config, "meta"), torch.bfloat16, bits) == tensors
    one, two = (head_memory(config, rows, 64, torch.bfloat16, bits) for rows in (1, 2))
    assert tensors < one.held < two.held
    experts = sum(tensor.nbytes for tensor in experts_in(head).state_dict().values())
    assert one.unread == two.unread == experts * 6 // 8, "a token goes to 2 of 8"


def test_rows_on_their_way_to_experts_are_in_the_plan() -> None:
    """Twice as many experts for a token take twice as many numbers, though the head is the same."""
    few, many = (head_memory(config_of("qwen3_next", num_experts_per_tok=k), 1, 64, torch.bfloat16, 8).held for k in (2, 4))
    assert many - few == 64 * 2 * 2 * (64 + 3 * 128 + 64 + 3 * 64)


def test_matrices_that_are_no_whole_blocks_are_held_as_they_are() -> None:
    config = config_of("qwen3_next", moe_intermediate_size=48)
    head = whole(config)
    few = held(head, 8)
    assert experts_in(few).gate_up_proj.shape == (8, 96, 64) and isinstance(experts_in(few).down_proj, HeldExperts)
    assert float((states(few) - states(head)).abs().median()) < 0.1
    assert tensor_bytes(built(config, "meta"), torch.float32, 8) == sum(each.nbytes for each in few.state_dict().values())


def test_they_learn() -> None:
    head = whole(config_of("qwen3_next")).requires_grad_(True)
    states(head).square().sum().backward()
    experts = experts_in(head)
    assert experts.gate_up_proj.grad.abs().sum() > 0 and experts.down_proj.grad.abs().sum() > 0
    assert experts_of_heads() == "understudy-head"


def test_experts_that_are_stored_transposed_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"stored transposed \(0\.mlp\.experts\.gate_up_proj\); this is not supported yet"):
        built(config_of("gpt_oss"), "meta")

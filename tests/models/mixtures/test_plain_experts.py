"""Experts of classes that transformers lets nobody replace: told from how they are built, like the stock layer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import generated, opened, save, stock
from understudy import SamplingParams
from understudy.errors import CheckpointError
from understudy.models.mixtures import plain_experts
from understudy.models.mixtures.experts import mixes, stacks
from understudy.models.stock import structure
from understudy.models.streamed import attention_name
from understudy.weights.export import export

PROMPT = [17, 45, 45, 200, 3, 17, 45, 99, 120, 7, 8, 9, 250, 31, 17, 45, 45]
PARAMS = SamplingParams(max_new_tokens=20, ignore_eos=True)


def experts_of(model: Any) -> Any:
    return next(module for module in model.modules() if type(module).__name__ == "LongcatFlashExperts")


def test_a_layer_gives_what_the_stock_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero experts too, which give back what they are given: each row here goes to some."""
    model = stock("longcat_flash")
    module, hidden = experts_of(model), torch.randn(11, 64)
    chosen = torch.stack([torch.randperm(12)[:3] for _ in range(11)])
    chosen[:, 0], weights = 9, torch.rand(11, 3)
    expected = module(hidden, chosen, weights)

    def mix(module: Any, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        found = torch.zeros_like(hidden)
        for place in (chosen < 8).nonzero().tolist():
            both = module.gate_up_proj[chosen[*place]] @ hidden[place[0]]
            found[place[0]] += weights[*place] * (module.down_proj[chosen[*place]] @ module._apply_gate(both))
        return found

    monkeypatch.setattr(plain_experts, "mix", mix)
    plain_experts.install_plain_experts(model)
    assert torch.allclose(module(hidden, chosen, weights), expected, atol=1e-5)


def test_its_matrices_are_those_of_experts_that_compute() -> None:
    model = structure.skeleton(stock("longcat_flash").config, torch.float32, attention_name())
    found = stacks(model)
    assert [stack.shape for stack in found.values()] == [(8 * 128, 64), (8 * 64, 64)] * 2
    assert mixes(experts_of(model)) and all(stack.parameter.is_meta for stack in found.values())


def test_a_router_of_many_experts_is_kept_whole() -> None:
    """It has more outputs than a block, and its class reads its weight without calling it."""
    model = structure.skeleton(stock("longcat_flash", n_routed_experts=120).config, torch.float32, attention_name())
    assert not any("router" in path for path in structure.streamed_linears(model))


def test_other_experts_are_left_alone() -> None:
    for family in ("qwen3_moe", "llama4_text"):
        model = stock(family)
        before = [module.forward for module in model.modules()]
        plain_experts.install_plain_experts(model)
        assert [module.forward for module in model.modules()] == before


def test_a_checkpoint_as_it_is_published_has_nothing_for_zero_experts(tmp_path: Path) -> None:
    """transformers writes such tensors, of any content; the text is the same, and both come back."""
    model = save(tmp_path / "saved", "longcat_flash", torch.float32)
    place = tmp_path / "saved" / "model.safetensors"
    tensors = load_file(place)
    published = {name: t for name, t in tensors.items() if not any(f".experts.{n}." in name for n in range(8, 12))}
    assert len(tensors) - len(published) == 2 * 4 * 2
    source = tmp_path / "published"
    source.mkdir()
    for file in (tmp_path / "saved").iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    save_file(published, source / "model.safetensors", {"format": "pt"})
    for each in (tmp_path / "saved", source):
        with opened(each, context=128) as llm:
            done, store = llm.generate(PROMPT, PARAMS)[0], llm.store
        assert done.token_ids == generated(model, PROMPT, 20) and done.stats.accepted > 0 and done.stats.bytes_streamed > 0
        export(store, tmp_path / f"{each.name}-again")
        for file in each.iterdir():
            assert (tmp_path / f"{each.name}-again" / file.name).read_bytes() == file.read_bytes(), file.name
    save_file({name: t for name, t in published.items() if ".experts.7." not in name}, source / "model.safetensors")
    with pytest.raises(CheckpointError, match="some have no tensor such as"):
        opened(source, context=128)

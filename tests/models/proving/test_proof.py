"""Nothing is run unproven: what transformers does otherwise is noticed in a small copy, and refused by name before any work."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AutoConfig

from tests.tiny import COMMON, FAMILIES, MIXTURES, save
from understudy import LLM
from understudy.errors import CheckpointError, UsageError
from understudy.models import streamed
from understudy.models.draft import Draft
from understudy.models.embedding import Lookup
from understudy.models.mixtures.routed import Routed
from understudy.models.proving import proof, specimen
from understudy.models.proving.shrink import shrunk
from understudy.models.stock import shape
from understudy.models.streamed import attention_name
from understudy.models.target import Target
from understudy.tree import Nodes

# Configs as transformers has them by default: learned positions and turned ones, scales, caps, windows, other names of tensors.
RELEASED = (
    "arcee", "biogpt", "cohere", "cohere2", "ernie4_5", "exaone4", "gemma", "gpt_bigcode", "gpt_neox", "granite_swa",
    "minicpm3", "modernbert-decoder", "olmo", "olmo3", "opt", "persimmon", "phi", "seed_oss", "smollm3", "stablelm", "starcoder2",
    # mixtures of experts, of many more and larger ones than the copy has
    "qwen3_moe", "deepseek_v3", "minimax_m2", "ernie4_5_moe",
)  # fmt: skip


def config_of(family: str) -> Any:
    values = {**COMMON, **FAMILIES[family]} if family in FAMILIES else {}
    return AutoConfig.for_model(values.pop("model_type", family), **values)


def found(family: str) -> dict[str, float]:
    return proof.differences(specimen.Specimen.of(shrunk(config_of(family))))


@pytest.mark.parametrize("family", [*FAMILIES, *RELEASED])
def test_families_that_run_right_are_proven_with_a_wide_margin(family: str) -> None:
    differences = found(family)
    assert set(differences) == {proof.PROMPT, proof.DRAFT, proof.VERIFY, proof.AFTER}
    assert 0 < max(differences.values()) < proof.TOLERANCE / 10
    assert proof.fault(config_of(family)) is None


@pytest.mark.parametrize(
    ("family", "word"),
    [
        ("diffllama", "more than once"), ("xglm", "by itself"), ("cpmant", "does not run"),
        ("bert", "both directions"), ("electra", "both directions"),
        ("openai-gpt", "computes attention"), ("hrm_text", "its config tells of"),
    ],
)  # fmt: skip
def test_families_that_would_write_another_text_are_refused_by_name(family: str, word: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=word) as refusal:
        proof.prove(config_of(family), tmp_path)
    assert repr(family) in str(refusal.value) and "\n" not in str(refusal.value)
    assert not list(tmp_path.rglob("*.json")), "a refusal is not kept"


def changed(**change: Callable[[Any], Any]) -> Callable[..., Any]:
    """transformers' attention interface with other options than the model gives."""

    def attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any = None, **options: Any) -> Any:
        for name, function in change.items():
            if options.get(name) is not None:
                options[name] = function(options[name])
        return streamed.attention(module, query, key, value, attention_mask, **options)

    return attention


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("granite", {"scaling": lambda _: None}),
        ("llama", {"scaling": lambda scaling: scaling * 1.05}),
        ("mistral", {"sliding_window": lambda window: window + 1}),
        ("gemma3_text", {"sliding_window": lambda window: window - 1}),
        ("qwen2-window", {"sliding_window": lambda _: None}),
        ("gemma2", {"softcap": lambda _: None}),
        ("gemma4_text", {"scaling": lambda _: None}),
        ("granite_swa", {"s_aux": lambda _: None}),
        ("granite_swa", {"s_aux": lambda sinks: sinks.roll(1)}),
    ],
)
def test_an_option_of_attention_that_is_not_kept_is_noticed(family: str, change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AttentionInterface._global_mapping, attention_name(), changed(**change))
    assert min(found(family).values()) > 10 * proof.TOLERANCE
    assert "other logits" in (proof.fault(config_of(family)) or "")


def test_keys_of_another_layer_than_the_shared_one_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first layer of the kind that keeps keys, not the last one."""
    real = shape.layers_read
    specimens = specimen.Specimen.of(shrunk(config_of("gemma4_unified_text")))

    def first(config: Any) -> list[int | None]:
        return [reads if reads is None else config.layer_types.index(config.layer_types[reads]) for reads in real(config)]

    monkeypatch.setattr(shape, "layers_read", first)
    assert min(proof.differences(specimens).values()) > 10 * proof.TOLERANCE


def test_a_table_beside_the_embedding_that_is_looked_up_wrongly_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the rows of the tile before."""
    late: list[torch.Tensor] = []

    def mixed(self: Lookup, tokens: torch.Tensor) -> torch.Tensor:
        own, beside = self.tables
        late.append(tokens)
        beside(late[-2] if len(late) > 1 and len(late[-2]) == len(tokens) else tokens.flip(0))
        return own(tokens)

    monkeypatch.setattr(Lookup, "__call__", mixed)
    assert min(found("gemma4-e").values()) > 10 * proof.TOLERANCE


@pytest.mark.parametrize("wrong", ["expert", "weight", "place"])
def test_experts_that_are_mixed_up_are_noticed(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows at another's expert, that count for as much as another, or whose results go to another row."""
    of = Routed.of

    def other(hidden: Tensor, chosen: Tensor, experts: int) -> tuple[Routed, Tensor, Tensor]:
        routed, order, places = of(hidden, chosen, experts)
        if wrong == "expert":
            routed = Routed(routed.rows, (routed.experts + 1).clamp(max=experts - 1))
        return routed, order.flip(0) if wrong == "weight" else order, places.flip(0) if wrong == "place" else places

    monkeypatch.setattr(Routed, "of", other)
    config = AutoConfig.for_model("qwen3_moe", **{**COMMON, **MIXTURES["qwen3_moe"]})
    assert proof.fault(config) is not None


def test_positions_that_are_off_by_one_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = proof.unprepared

    def later(_: Any, args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**options, "position_ids": options["position_ids"] + 1}

    def shifted(*given: Any) -> Any:
        model = real(*given)
        model.base.decoder.register_forward_pre_hook(later, with_kwargs=True)
        return model

    monkeypatch.setattr(proof, "unprepared", shifted)
    assert min(found("opt").values()) > 10 * proof.TOLERANCE


@pytest.mark.parametrize(("view", "what"), [(Target, proof.VERIFY), (Draft, proof.DRAFT)])
def test_a_tree_that_is_read_as_a_chain_is_noticed(view: Any, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = view.__call__

    def chained(self: Any, nodes: Nodes, *given: Any) -> Any:
        return run(self, replace(nodes, prefix=nodes.positions + 1, tail=nodes.tail[:, :0]), *given)

    monkeypatch.setattr(view, "__call__", chained)
    differences = found("llama")
    assert differences[what] > 10 * proof.TOLERANCE
    assert differences[proof.PROMPT] < proof.TOLERANCE


def test_a_rope_that_is_passed_over_is_noticed() -> None:
    """Our copy of the model is built with another rope than the stock one."""
    right = specimen.Specimen.of(shrunk(config_of("llama")))
    other = shrunk(config_of("llama"))
    other.rope_parameters = {**other.rope_parameters, "rope_type": "linear", "factor": 1.1}
    assert min(proof.differences(replace(right, config=other)).values()) > 10 * proof.TOLERANCE


@pytest.mark.parametrize(
    ("family", "change"),
    [
        # a layer without positions is given a rope
        ("smollm3", {"no_rope_layers": [1, 1]}),
        ("gemma4_text", {"final_logit_softcapping": None}),
        # the rope of sliding layers in global ones, and another share of each head that is turned
        ("gemma4_text", {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}}),
        ("gemma4-e", {"rope_parameters": {"full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5}}}),
    ],
)
def test_a_switch_of_a_layer_kind_that_is_passed_over_is_noticed(family: str, change: dict[str, Any]) -> None:
    """Our copy of the model is built with another value than the stock one."""
    right = specimen.Specimen.of(shrunk(config_of(family)))
    other = shrunk(config_of(family))
    for name, value in change.items():
        own = getattr(other, name)
        assert own != value
        merged = {kind: rope | value.get(kind, {}) for kind, rope in own.items()} if isinstance(own, dict) else value
        setattr(other, name, merged)
    assert min(proof.differences(replace(right, config=other)).values()) > 10 * proof.TOLERANCE


def test_a_proof_is_kept_for_the_same_switches_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proof.prove(AutoConfig.for_model("qwen2", num_hidden_layers=28, vocab_size=152064), tmp_path)
    kept = [json.loads(path.read_text()) for path in tmp_path.rglob("*.json")]
    assert [said["model_type"] for said in kept] == ["qwen2"] and kept[0]["seconds"] > 0
    monkeypatch.setattr(proof, "fault", lambda config: "it was asked again")
    proof.prove(AutoConfig.for_model("qwen2", num_hidden_layers=48, vocab_size=152064), tmp_path)
    with pytest.raises(CheckpointError, match="asked again"):
        proof.prove(AutoConfig.for_model("qwen2", hidden_act="gelu"), tmp_path)


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    proof.prove(config_of("llama"), tmp_path / "file")


def test_a_proof_leaves_the_random_state_alone() -> None:
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    assert proof.fault(config_of("llama")) is None
    assert torch.equal(torch.rand(3), wanted)


def test_values_that_a_config_class_refuses_are_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "shrunk", lambda config, *_: type(config)(hidden_size="wide"))
    assert "no small copy" in (proof.fault(config_of("llama")) or "")


def test_what_cannot_be_shown_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(specimen, "MOST_PARAMETERS", 1000)
    assert "no small copy" in (proof.fault(config_of("llama")) or "")


def test_a_checkpoint_is_refused_before_anything_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    save(tmp_path / "model", "diffllama")
    for attempt in (LLM, LLM.prepare, LLM.plan_only):
        with pytest.raises(CheckpointError, match=r"'diffllama'.*attention more than once"):
            attempt(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"'diffllama'.*attention more than once"):
        LLM.plan_only(config=tmp_path / "model")
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").rglob("index.json"))


def test_memory_is_looked_at_before_a_proof_and_not_for_one_that_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("understudy.plan.machine.spare_bytes", lambda: proof.PROVING - 1)
    with pytest.raises(UsageError, match=r"^Trying this kind of model in small, .* takes up to 160 MiB .* 160 MiB is free: .*\.$"):
        proof.prove(config_of("llama"), tmp_path)
    monkeypatch.setattr("understudy.plan.machine.spare_bytes", lambda: proof.PROVING)
    proof.prove(config_of("llama"), tmp_path)
    monkeypatch.setattr("understudy.plan.machine.spare_bytes", lambda: 0)
    proof.prove(config_of("llama"), tmp_path)

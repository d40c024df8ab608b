"""The delta rule that forgets by channel: what its layers keep, and a rule that is wrong is seen by the proof."""

import pytest

from tests.models.recurrent_layers.test_channel_steps import forgetting
from tests.tiny import stock
from understudy.models.proving.proof import fault
from understudy.models.stock.shape import ModelShape
from understudy.recurrent import RecurrentShape


def test_what_a_layer_keeps_is_read_off_its_config() -> None:
    kimi, ling = (ModelShape.of(stock(family).config).layers for family in ("kimi_linear", "bailing_hybrid"))
    assert kimi[0].recurrent == RecurrentShape(3 * 48, 4, 3, 3, 16, 16, by_channel=True) and kimi[1].recurrent is None
    assert ling[0].recurrent == RecurrentShape(3 * 64, 4, 4, 4, 16, 16, by_channel=True)
    assert [layer.kv_heads for layer in kimi] == [0, 4, 0] and [layer.kv_heads for layer in ling] == [0, 4, 0]


@pytest.mark.parametrize("wrong", ["decay", "beta", "query", "steps"])
def test_the_proof_sees_a_rule_that_is_wrong(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from understudy.kernels.recurrence import RuleStep

    def changed(query: object, key: object, value: object, decay: object, beta: object) -> RuleStep:
        parts = {"query": query, "key": key, "value": value, "decay": decay, "beta": beta}
        other = parts[wrong].flip(-1) if wrong == "decay" else parts[wrong] * 1.1  # type: ignore[attr-defined,operator]
        return RuleStep(**{**parts, wrong: other})  # type: ignore[arg-type]

    if wrong == "steps":
        monkeypatch.setattr("understudy.models.recurrent_layers.channel_steps.run_steps", forgetting)
    else:
        monkeypatch.setattr("understudy.models.recurrent_layers.channel_delta.RuleStep", changed)
    why = fault(stock("kimi_linear").config)
    assert why is not None and "other logits" in why


def test_gates_of_one_linear_and_of_two_run() -> None:
    names = {name for family in ("kimi_linear", "bailing_hybrid") for name, _ in stock(family).named_modules() if ".g_" in name}
    assert {name.rpartition(".")[2] for name in names} == {"g_a_proj", "g_b_proj", "g_proj"}

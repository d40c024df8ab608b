"""Of experts, a plan counts those that nodes are expected to go to, and nothing of what stays in memory as streamed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import save
from understudy import LLM
from understudy.plan.mixture import Mixture
from understudy.plan.residents import Kept, LinearSize, used_share

# A Linear that each token uses, and two of experts of which a token goes to a quarter: three parts each.
LINEARS = [LinearSize(10, 40, 3, share=share) for share in (1.0, 0.25, 0.25)]
PARTS = [5, 6, 7, 8, 9, 10, 11, 12, 13]


@given(
    parts=st.frozensets(st.integers(0, 8)), whole=st.frozensets(st.integers(0, 2)), decoded=st.frozensets(st.integers(0, 2)),
)  # fmt: skip
def test_what_stays_is_not_streamed(parts: frozenset[int], whole: frozenset[int], decoded: frozenset[int]) -> None:
    parts = frozenset(n for n in parts if n // 3 not in whole | decoded)
    kept = Kept(parts, whole, decoded=decoded, taken_bytes=0, streamed_bytes=0)
    found = Mixture.of(PARTS, LINEARS, kept)
    assert found is not None and found.share == 0.25 and found.exact_bytes == 80
    assert found.streamed_bytes == sum(PARTS[n] for n in range(3, 9) if n not in parts and n // 3 not in whole | decoded)
    assert found.level_bytes == sum(40 if index in whole else 10 for index in (1, 2))


def test_a_device_is_brought_all_and_a_level_reads_some(tmp_path: Path) -> None:
    save(tmp_path / "model", "qwen3_moe", torch.bfloat16)
    options: dict[str, Any] = {"context": 64, "codec": "raw", "bits": 4, "rows": 1, "resident": "none", "memory": "1GiB"}
    here = LLM.plan_only(tmp_path / "model", **options)
    there = LLM.plan_only(tmp_path / "model", **options, machine="cuda:memory=4GB,link=25GB/s,host=8GB")
    assert here.mixture is not None and there.mixture == here.mixture.all_brought()
    assert there.streamed_by(1) == there.streamed_by(32) == there.streamed_bytes > here.streamed_by(32) > here.streamed_by(1)
    assert there.exact_by(1) == there.exact_bytes and there.level_by(1) == here.level_by(1) < there.draft_level_bytes
    assert any("for any tokens, since all experts come" in line for line in there.lines())
    assert not any("for any tokens" in line for line in here.lines())


def test_a_dense_model_has_none() -> None:
    assert Mixture.of(PARTS[:3], LINEARS[:1], Kept(frozenset(), frozenset(), taken_bytes=0, streamed_bytes=0)) is None


@given(share=st.floats(0.001, 1), nodes=st.floats(1, 300))
def test_more_nodes_use_more_experts_and_never_more_than_all(share: float, nodes: float) -> None:
    assert used_share(share, 1) == pytest.approx(share)
    assert share - 1e-9 <= used_share(share, nodes) <= used_share(share, nodes + 1) + 1e-9 <= 1 + 2e-9


@pytest.mark.parametrize("resident", ["none", "residual", "whole", "auto"])
@pytest.mark.parametrize("memory", [1, 2, 4, 8, 1000])
def test_plans_of_any_memory_can_be_read(resident: str, memory: int, tmp_path: Path) -> None:
    """None streams less than nothing, and what is read grows with the nodes of a pass."""
    save(tmp_path / "model", "qwen3_moe", torch.bfloat16)
    options: dict[str, Any] = {"context": 64, "codec": "raw", "bits": 4, "rows": 1}
    smallest = LLM.plan_only(tmp_path / "model", memory="1GiB", resident="none", **options).least_bytes
    plan = LLM.plan_only(tmp_path / "model", memory=smallest + (memory << 18), resident=resident, **options)
    assert plan.mixture is not None and plan.mixture.share == 0.25 and any("experts" in line for line in plan.lines())
    for by in (plan.streamed_by, plan.level_by, plan.exact_by):
        assert 0 <= by(1) <= by(4) <= by(32)
    assert 0 <= plan.streamed_by(32) <= plan.streamed_bytes and (resident == "none") <= (plan.streamed_by(1) > 0)

"""Rows times codes: right for any shape, count of rows and dtype, on one thread and on torch's team."""

import pytest
import torch

from tests.kernels.test_blocks import product
from understudy.kernels import team
from understudy.kernels.draft_product import Joined
from understudy.kernels.join_form import GateKind, JoinForm, Norm
from understudy.quantizers import quantizer


def _relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found.float() - wanted.float()).norm() / wanted.float().norm()).item()


@pytest.mark.parametrize("spec", ["int2", "int2:group=16", "int3", "int3:group=32", "int4", "int4:group=256", "int6", "int8"])
@pytest.mark.parametrize("rows", [1, 3, 6, 9])
def test_all_threads_give_what_one_gives(spec: str, rows: int) -> None:
    maker = quantizer(spec)
    shape = (1500, 512)  # enough for a team
    made = maker.quantize(torch.randn(shape))
    x = torch.randn(rows, shape[1])
    linear = maker.linear(made, shape, torch.float32)
    one = linear(x)
    torch.set_num_threads(2)
    try:
        assert torch.equal(linear(x), one)
    finally:
        torch.set_num_threads(1)
    assert _relative(one, x @ maker.dequantize(made, shape).T) < 0.01


@pytest.mark.parametrize("spec", ["int2", "int3", "int4", "int6"])
def test_a_row_does_not_depend_on_the_others(spec: str) -> None:
    maker = quantizer(spec)
    made = maker.quantize(torch.randn(256, 256))
    linear = maker.linear(made, (256, 256), torch.bfloat16)
    x = torch.randn(7, 256, dtype=torch.bfloat16)
    assert torch.equal(torch.cat([linear(row[None]) for row in x]), linear(x))


def test_no_rows_give_none() -> None:
    maker = quantizer("int4")
    linear = maker.linear(maker.quantize(torch.randn(128, 256)), (128, 256), torch.bfloat16)
    assert linear(torch.empty(0, 256, dtype=torch.bfloat16)).shape == (0, 128)


def test_zeros_and_views() -> None:
    maker = quantizer("int4")
    made = maker.quantize(torch.randn(64, 64))
    linear = maker.linear(made, (64, 64), torch.float32)
    assert not linear(torch.zeros(2, 64)).any()
    x = torch.randn(64, 3)
    assert torch.equal(linear(x.T), linear(x.T.contiguous()))


def test_torch_threads_are_found() -> None:
    assert team.parallel() != 0 and team.note() == ""


def test_without_a_team_one_thread_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = quantizer("int4")
    made = maker.quantize(torch.randn(1500, 512))
    linear = maker.linear(made, (1500, 512), torch.float32)
    x = torch.randn(2, 512)
    wanted = linear(x)
    monkeypatch.setattr(team, "parallel", lambda: 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert torch.equal(linear(x), wanted)
    assert "one thread" in team.note()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_factor_and_a_norm_come_before_what_is_added(dtype: torch.dtype, threads: int) -> None:
    torch.manual_seed(threads)
    multiply = product(1500, 256, 64)
    x, added, norm = torch.randn(3, 256).to(dtype), torch.randn(3, 1500).to(dtype), Norm(torch.rand(1500) + 0.5, 1e-3)
    plain = multiply(x).float() * 0.25
    wanted = plain * (plain.square().mean(1, keepdim=True) + 1e-3).rsqrt() * norm.weight + added.float()
    torch.set_num_threads(threads)
    try:
        found = Joined([multiply], JoinForm(times=0.25, after=norm))(x, added)
        scaled, alone = (Joined([multiply], JoinForm(times=0.25))(x, more) for more in (added, None))
        halved = [Joined([multiply], JoinForm(times=0.25, after=after, scale=0.5))(x, added) for after in (norm, None)]
    finally:
        torch.set_num_threads(1)
    near = 1e-5 if dtype == torch.float32 else 0.01
    assert _relative(found, wanted) < near
    assert _relative(halved[0], wanted / 2) < near and _relative(halved[1], (plain + added.float()) / 2) < near
    assert _relative(scaled, plain + added.float()) < near and _relative(alone, plain) < near


@pytest.mark.parametrize("gate", list(GateKind))
def test_one_weight_may_hold_both_halves(gate: GateKind) -> None:
    torch.manual_seed(1)
    whole = product(384, 128, 64)
    x = torch.randn(4, 128)
    first, second = whole(x).chunk(2, 1)
    opened = torch.nn.functional.silu(first) if gate is GateKind.SILU else torch.nn.functional.gelu(first, approximate="tanh")
    found = Joined(whole.halves, JoinForm(gate=gate))(x)
    assert found.shape == (4, 192) and _relative(found, opened * second) < 1e-4
    assert product(320, 128, 64).halves == []

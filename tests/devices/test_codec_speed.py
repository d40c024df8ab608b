"""The codec that is faster, from what was measured."""

from collections.abc import Sequence

import pytest
import torch

from tests.fake_device import FakeDevice
from understudy.codecs import Codec, codec
from understudy.devices import codec_speed
from understudy.devices.codec_speed import COPIES, ROWS, TURNS, fastest_codec, seconds_a_weight, turns
from understudy.devices.processor import Processor
from understudy.kernels.exact_product import BlockProduct


class Measured(Processor):
    """A processor of which it is known how long a weight takes, by codec."""

    def __init__(self, **seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def seconds_a_weight(self, codec: Codec, quantizer: str, dtype: torch.dtype) -> float:
        return self.seconds[codec.name]


def test_a_slow_link_wants_few_bytes_and_slow_processors_want_little_work() -> None:
    slow = Measured(raw=1e-9, delta=2e-9)
    assert fastest_codec(0.2e9, torch.bfloat16, "int4", slow) == "delta"
    assert fastest_codec(100e9, torch.bfloat16, "int4", slow) == "raw"
    even = Measured(raw=1e-9, delta=1e-9)
    assert fastest_codec(100e9, torch.bfloat16, "int4", even) == "delta", "on equal terms the one that takes half the room"


@pytest.mark.parametrize(
    ("dtype", "quantizer"), [(torch.float32, "int4"), (torch.bfloat16, "exact"), (torch.float16, "exact")]
)
def test_what_delta_cannot_store_is_raw(dtype: torch.dtype, quantizer: str) -> None:
    assert fastest_codec(1e6, dtype, quantizer, Processor()) == "raw"


def test_seconds_are_measured_of_the_product_that_a_pass_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own takes many times as long on some processors, and no choice of a codec would follow from that."""
    rows, call = [], BlockProduct.__call__

    def counted(product: BlockProduct, tiles: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        rows.append(len(out))
        call(product, tiles, out)

    monkeypatch.setattr(BlockProduct, "__call__", counted)
    monkeypatch.setattr(torch.Tensor, "__matmul__", None)
    seconds_a_weight.cache_clear()
    raw, delta = (seconds_a_weight(name, "int4", torch.bfloat16) for name in ("raw", "delta"))
    assert 0 < raw < 1e-6 and 0 < delta < 1e-6
    assert rows == [ROWS] * 2 * COPIES * (1 + TURNS)
    assert Processor().seconds_a_weight(codec("delta"), "int4", torch.bfloat16) == delta, "measured once"


def test_weights_of_float16_are_measured_as_they_are_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds, call = set(), BlockProduct.__call__

    def counted(product: BlockProduct, tiles: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        kinds.add((product.dtype, *(operand.dtype for operand in product._operands)))
        call(product, tiles, out)

    monkeypatch.setattr(BlockProduct, "__call__", counted)
    seconds_a_weight.cache_clear()
    found = Processor().seconds_a_weight(codec("delta"), "int4", torch.float16)
    assert 0 < found < 1e-6 and kinds == {(torch.float32, torch.float16)}


def test_weights_of_float16_have_a_smaller_form() -> None:
    even = Measured(raw=1e-9, delta=1e-9)
    assert fastest_codec(1e9, torch.float16, "int4", even) == "delta"
    assert fastest_codec(100e9, torch.float16, "int4", Measured(raw=1e-9, delta=2e-9)) == "raw"


def test_turns_are_averages_over_all_actions(monkeypatch: pytest.MonkeyPatch) -> None:
    moments, ran = iter([0.0, 6.0, 10.0, 12.0]), []
    monkeypatch.setattr(codec_speed.time, "perf_counter", lambda: next(moments))
    assert turns([lambda: ran.append(1), lambda: ran.append(2)], 2) == [3.0, 1.0] and ran == [1, 2] * 3


def test_weights_in_fp8_have_one_more_codec() -> None:
    even = Measured(raw=1e-9, delta=1e-9, fp8=1e-9)
    assert fastest_codec(1e9, torch.bfloat16, "int4", even, "fp8") == "fp8"
    assert fastest_codec(1e9, torch.bfloat16, "int4", even) == fastest_codec(1e9, torch.bfloat16, "int4", even, "mxfp4") == "delta"
    slow = Measured(raw=1e-9, delta=1e-9, fp8=2e-9)
    assert fastest_codec(1e9, torch.bfloat16, "int4", slow, "fp8") == "delta"
    assert fastest_codec(0.3e9, torch.bfloat16, "int4", slow, "fp8") == "fp8"
    assert fastest_codec(50e9, torch.bfloat16, "int4", FakeDevice(), "fp8") == "fp8", "what brings the fewest bytes, on a GPU"
    assert fastest_codec(50e9, torch.bfloat16, "int4", FakeDevice(triton=False), "fp8") == "raw"
    assert 0 < seconds_a_weight("fp8", "int4", torch.bfloat16) < 1e-6


def test_weights_in_four_bits_have_another() -> None:
    even = Measured(raw=1e-9, delta=1e-9, fp8=1e-9, w4=1e-9)
    for dtype in (torch.bfloat16, torch.float16):
        assert fastest_codec(1e9, dtype, "int4", even, "int4") == "w4"
    assert "w4" not in {fastest_codec(1e9, torch.bfloat16, "int4", even, form) for form in ("", "fp8", "mxfp4")}
    assert fastest_codec(100e9, torch.bfloat16, "int4", Measured(raw=1e-9, delta=1e-9, w4=2e-9), "int4") == "delta"
    assert fastest_codec(1e9, torch.float32, "int4", even, "int4") == "raw"
    for dtype in (torch.bfloat16, torch.float16):
        assert 0 < seconds_a_weight("w4", "int4", dtype) < 1e-6


@pytest.mark.parametrize(("triton", "wanted"), [(True, "delta"), (False, "raw")])
def test_a_device_decodes_if_it_has_triton(triton: bool, wanted: str) -> None:
    device = FakeDevice(triton=triton)
    assert fastest_codec(1e9, torch.bfloat16, "int4", device) == wanted
    assert fastest_codec(1e9, torch.float32, "int4", device) == "raw"

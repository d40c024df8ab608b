"""Fitted copies err less on inputs like those they were fitted to, and stay copies: codes in their bins, the same every time."""

import pytest
import torch
from torch import Tensor

from understudy.codecs import Encoded, codec
from understudy.kernels import fitting
from understudy.kernels.pack import block
from understudy.quantizers import Tensors, quantizer
from understudy.quantizers.inputs import Inputs

SHAPE = (192, 256)


def _weight() -> Tensor:
    return (torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) * 0.03).bfloat16()


def _activations(seed: int) -> Tensor:
    """Inputs of which some are large and some go together; others of the same kind for another seed."""
    fixed, generator = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    sizes, mixed = torch.randn(SHAPE[1], generator=fixed).exp(), torch.randn(6, SHAPE[1], generator=fixed)
    own = torch.randn(200, SHAPE[1], generator=generator)
    return sizes * (own + 2 * torch.randn(200, 6, generator=generator) @ mixed)


def _error(spec: str, tensors: Tensors, x: Tensor) -> float:
    weight = _weight().float()
    wrong = quantizer(spec).dequantize(tensors, SHAPE) - weight
    return float((x @ wrong.T).square().sum() / (x @ weight.T).square().sum())


@pytest.mark.parametrize("spec", ["int4", "int4:group=32", "int3", "int2"])
def test_other_inputs_of_the_same_kind_err_less(spec: str) -> None:
    made = quantizer(spec)
    inputs = Inputs.of(_activations(2))
    free, fitted = made.quantize(_weight()), made.quantize(_weight(), inputs)
    assert {name: t.shape for name, t in free.items()} == {name: t.shape for name, t in fitted.items()}
    unseen = _activations(3)
    assert _error(spec, fitted, unseen) < 0.6 * _error(spec, free, unseen)
    again = made.quantize(_weight(), inputs)
    assert all(torch.equal(fitted[name], again[name]) for name in fitted)


@pytest.mark.parametrize("directions", [0, 8])
def test_pieces_are_fitted_as_the_whole(directions: int) -> None:
    found = Inputs.of(_activations(2))
    assert found is not None
    inputs = Inputs(found.own, found.directions[:, :directions])
    made = quantizer("int4")
    whole = made.quantize(_weight(), inputs)
    pieces = made.merge([made.quantize(_weight()[:128], inputs), made.quantize(_weight()[128:], inputs)])
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)


def test_weights_stay_in_the_bins_of_their_codes() -> None:
    made, delta = quantizer("int4"), codec("delta")
    blocks = block(_weight())
    sizes = []
    for inputs in (None, Inputs.of(_activations(2))):
        substitute = made.quantize(_weight(), inputs)
        data = delta.encode(blocks, substitute)
        assert torch.equal(delta.decode(Encoded(data, *blocks.shape[:2], torch.bfloat16, substitute)), blocks)
        sizes.append(data.numel())
    assert sizes[1] < 1.04 * sizes[0]


def test_no_input_or_odd_weights_do_no_harm() -> None:
    made = quantizer("int4")
    unused = Inputs(torch.zeros(SHAPE[1]), torch.zeros(SHAPE[1], 4))
    blocks = block(_weight()).float()
    codes, _ = fitting.fit(blocks, made.quantize(_weight())["scales"], unused.own, unused.directions, 4)
    assert torch.equal(codes, made.quantize(_weight())["codes"]), "nothing is better than what there was"
    odd = _weight()
    odd[0, :64] = 0
    odd[1, :64] = 1e-30
    odd[2, :64] = 3e38
    odd[3, 5] = float("nan")
    tensors = made.quantize(odd, Inputs.of(_activations(2)))
    assert torch.isfinite(tensors["scales"].float()).all()
    assert torch.isfinite(made.dequantize(tensors, SHAPE)[[0, 1, 3]]).all()

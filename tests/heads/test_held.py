"""Heads in few bits: nearly the same states, as many bytes as are counted, and read in pieces."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import trained
from tests.heads.golden import randomized
from understudy.devices.processor import Processor
from understudy.errors import CheckpointError, UsageError
from understudy.heads import DraftHead, HeadConfig
from understudy.heads.files import built, load, save
from understudy.heads.held import ROWS, FewBits, Holding, check_bits, hold, tensor_bytes
from understudy.heads.tensors import Values
from understudy.kernels.pack import flat
from understudy.quantizers import quantizer

MULTIPLY = Processor(threads=1).draft_product


def read(head: DraftHead) -> Iterator[tuple[str, Values]]:
    return ((name, Values.of(tensor)) for name, tensor in head.state_dict().items())


def held(head: DraftHead, bits: int, dtype: torch.dtype = torch.float32) -> DraftHead:
    return hold(built(head.config, "meta"), read(head), Holding(dtype, bits=bits, multiply=MULTIPLY))


def small(head: DraftHead) -> dict[str, FewBits]:
    return {name: module for name, module in head.named_modules() if isinstance(module, FewBits)}


def states(head: DraftHead, config: HeadConfig, count: int) -> Tensor:
    """What a head without keys and values says of random tokens [count, state size]."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn((1, count, len(config.taps), 64), generator=generator)
    embedded = torch.randn((1, count, 64), generator=generator)
    places: Any = None
    return torch.cat([head.features(head.begin(hidden, embedded, places), depth)[0] for depth in range(config.heads)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("kind", trained.SHAPES)
def test_as_many_bytes_are_held_as_are_counted(kind: str, bits: int, dtype: torch.dtype) -> None:
    head = randomized(built(trained.config(kind)))
    made = held(head, bits, dtype)
    counted = tensor_bytes(built(head.config, "meta"), dtype, bits)
    assert sum(tensor.nbytes for tensor in made.state_dict().values()) == counted
    assert bool(small(made)) == (bits < 16)
    assert bits == 16 or counted < tensor_bytes(head, dtype, 2 * bits)


@pytest.mark.parametrize(("bits", "error"), [(16, 0.0), (8, 0.03), (4, 0.3)])
def test_states_are_nearly_those_of_all_bits(bits: int, error: float) -> None:
    head = randomized(built(trained.config("medusa")))
    found, wanted = states(held(head, bits), head.config, 20), states(head, head.config, 20)
    relative = float((found - wanted).norm() / wanted.norm())
    assert error / 20 <= relative <= error


@pytest.mark.parametrize("bits", [8, 4])
def test_what_a_matrix_says_of_a_row_does_not_depend_on_others(bits: int) -> None:
    made = held(randomized(built(trained.config("eagle"))), bits)
    fc = small(made)["fc"]
    x = torch.randn(1, 9, fc.shape[1])
    together = fc(x)
    assert together.shape == (1, 9, 64) and fc.bias is not None
    for place in range(9):
        assert torch.equal(fc(x[:, place : place + 1])[0, 0], together[0, place])


def test_a_matrix_is_read_in_pieces_and_is_what_it_would_be_at_once() -> None:
    config = trained.config("eagle", draft_vocab_size=2 * ROWS + 100)
    head = randomized(built(config, "cpu"))
    largest: list[int] = []

    def pieces() -> Iterator[tuple[str, Values]]:
        for name, tensor in head.state_dict().items():
            yield name, Values(tensor.dtype, tuple(tensor.shape), lambda tensor=tensor: flat(tensor).split(1000))

    made = hold(
        built(config, "meta"), pieces(), Holding(torch.float32, bits=4, multiply=MULTIPLY),
        lambda name, tensor: largest.append(len(tensor) if tensor.dim() > 1 else 0),
    )  # fmt: skip
    assert max(largest) == ROWS and largest.count(ROWS) == 2
    own, others = small(made)["output"], small(made)["fc"]
    assert own.kind.name == "int8" and others.kind.name == "int4", "which of two tokens is likelier needs more bits"
    for name, expected in quantizer("int8").quantize(head.state_dict()["output.weight"]).items():
        assert torch.equal(made.state_dict()[f"output.{name}"], expected)


def test_a_matrix_that_cannot_be_quantised_is_kept() -> None:
    odd = {**trained.LAYER, "intermediate_size": 40}
    made = held(randomized(built(trained.config("eagle", layer=odd))), 8)
    assert "layers.0.mlp.down_proj" not in small(made) and "layers.0.mlp.up_proj" in small(made)


def test_bad_values_are_found_in_any_piece(tmp_path: Path) -> None:
    head = randomized(built(trained.config("eagle", draft_vocab_size=2 * ROWS)))
    head.state_dict()["output.weight"][2 * ROWS - 1, 3] = torch.nan
    save(head, tmp_path / "head")
    with pytest.raises(CheckpointError, match=r"head: the tensor 'output\.weight' has NaN or infinite values"):
        load(tmp_path / "head", Holding(torch.bfloat16, bits=8, multiply=MULTIPLY))


@pytest.mark.parametrize("bits", [0, 2, 3, 32, -8])
def test_other_numbers_of_bits_are_refused(bits: int) -> None:
    with pytest.raises(UsageError, match=f"suggest_bits must be one of 4, 8, 16, got {bits}"):
        check_bits(bits, "suggest_bits")

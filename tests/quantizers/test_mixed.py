"""A mix takes no more than it may, gives bits where they help, and can be foretold."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.errors import UsageError
from understudy.quantizers import quantizer
from understudy.quantizers.mixed import CHOICES, Mixed, foretold, mixed

LLAMA = [(256, 256), (64, 256), (64, 256), (256, 256), (704, 256), (704, 256), (256, 704)] * 4 + [(4096, 256)]


def _bits(shapes: list[tuple[int, int]], chosen: list[str]) -> float:
    size = sum(quantizer(spec).size(*shape) for spec, shape in zip(chosen, shapes, strict=True))
    return size * 8 / sum(rows * columns for rows, columns in shapes)


@settings(deadline=None)
@given(st.floats(2.5, 9), st.lists(st.floats(0.1, 10), min_size=len(LLAMA), max_size=len(LLAMA)))
def test_never_more_than_was_given_and_no_room_is_left_for_more(bits: float, harder: list[float]) -> None:
    errors = [{spec: error * factor for spec, error in CHOICES.items()} for factor in harder]
    chosen = Mixed(bits=bits).choose(LLAMA, errors)
    assert _bits(LLAMA, chosen) <= bits
    spare = (bits - _bits(LLAMA, chosen)) * sum(rows * columns for rows, columns in LLAMA) / 8
    for shape, spec, error in zip(LLAMA, chosen, errors, strict=True):
        better = [name for name in CHOICES if error[name] < error[spec]]
        steps = [quantizer(name).size(*shape) - quantizer(spec).size(*shape) for name in better]
        assert all(step > spare - 1 for step in steps)


@settings(deadline=None)
@given(
    st.sampled_from(["int2:group=64", "int3", "int4"]),
    st.lists(st.floats(0.2, 5), min_size=len(LLAMA), max_size=len(LLAMA)),
)
def test_better_than_the_same_bits_everywhere(spec: str, harder: list[float]) -> None:
    errors = [{name: error * factor for name, error in CHOICES.items()} for factor in harder]
    same = _bits(LLAMA, [spec] * len(LLAMA))
    chosen = Mixed(bits=same + 1e-9).choose(LLAMA, errors)
    counts = [1.0] * (len(LLAMA) - 1) + [len(LLAMA) / 3]

    def total(specs: list[str]) -> float:
        return sum(count * error[name] for count, error, name in zip(counts, errors, specs, strict=True))

    assert total(chosen) <= total([spec] * len(LLAMA)) * 1.001


def test_who_errs_more_gets_more() -> None:
    shapes = [(256, 256)] * 12 + [(512, 256)]
    errors = [dict(CHOICES) for _ in shapes]
    errors[5] = {spec: 8 * error for spec, error in CHOICES.items()}
    chosen = Mixed(bits=3.5).choose(shapes, errors)
    taken = {spec: quantizer(spec).size(256, 256) for spec in CHOICES}
    assert all(taken[chosen[5]] > taken[spec] for i, spec in enumerate(chosen[:12]) if i != 5)


def test_what_cannot_be_quantised_is_kept_whole_and_not_counted() -> None:
    shapes = [(64, 33), (256, 256), (256, 256)]
    chosen = Mixed(bits=3.5).choose(shapes, [CHOICES] * 3)
    assert chosen[0] == "exact" and _bits(shapes[1:], chosen[1:]) <= 3.5


def test_named_and_foretold() -> None:
    made = mixed("mixed")
    assert made is not None and made.name == "mixed:bits=3.5"
    weighed = mixed("mixed:bits=3,calibrated=abc")
    assert weighed is not None and weighed.name == "mixed:bits=3,calibrated=abc"
    assert mixed("int4") is None
    assert foretold("int3", LLAMA) == ["int3"] * len(LLAMA)
    assert foretold("mixed", LLAMA) == made.choose(LLAMA, [CHOICES] * len(LLAMA))


@pytest.mark.parametrize("spec", ["mixed:bits=1", "mixed:bits=17", "mixed:bits=nan", "mixed:bit=3", "mixed:bits=x"])
def test_wrong_mixes(spec: str) -> None:
    with pytest.raises(UsageError):
        mixed(spec)


def test_too_few_bits_name_the_least() -> None:
    with pytest.raises(UsageError, match=r"too few: 2\.50 is the least"):
        foretold("mixed:bits=2.2", LLAMA)

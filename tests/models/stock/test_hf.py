"""What transformers raises becomes one line that names what is wrong; what we raise ourselves passes."""

from typing import Any

import pytest

from understudy.errors import CheckpointError, StoreError
from understudy.models.stock.hf import refused

CONFIG: dict[str, Any] = {"hidden_act": "odd", "rope": {"rope_type": "newest"}, "nothing": None}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("odd"), "It fails: hidden_act cannot be 'odd'."),
        (KeyError("newest"), "It fails: rope_type cannot be 'newest'."),
        (KeyError("factor"), "It fails: 'factor' is missing."),
        (KeyError(None), "It fails: None is missing."),
        (KeyError(), "It fails: None is missing."),
        (ValueError("no good.\nAnd more of it"), "It fails: no good."),
        (ZeroDivisionError("division by zero"), "It fails: division by zero."),
        (AssertionError(), "It fails: AssertionError."),
    ],
    ids=repr,
)
def test_an_error_is_one_line(error: Exception, said: str) -> None:
    with pytest.raises(CheckpointError) as refusal, refused("It fails", CONFIG):
        raise error
    assert str(refusal.value) == f"{said} Mend it, or take another model."


def test_a_validation_of_many_lines_is_one() -> None:
    from transformers import AutoConfig

    with pytest.raises(CheckpointError) as refusal, refused("It fails", {}):
        AutoConfig.for_model("llama", vocab_size="256")
    assert "vocab_size" in str(refusal.value) and "expected int, got str" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("error", [StoreError("as it is"), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_other_errors_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as passed, refused("It fails", CONFIG):
        raise error
    assert passed.value is error

"""Values of another kind than their option has are named, and those that are as good as it are taken."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from understudy.errors import UsageError
from understudy.option_kinds import check_kinds
from understudy.options import Options


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"context": 1.5}, "context must be a whole number or None, got 1.5"),
        ({"context": "12"}, "context must be a whole number or None, got '12'"),
        ({"rows": []}, "rows must be"),
        ({"method": None}, "method must be a text, got None"),
        ({"method": 5}, "method must be a text"),
        ({"device": None}, "device must be a text"),
        ({"dtype": 16}, "dtype must be a text"),
        ({"dtype": torch.float64}, "No dtype 'float64'"),
        ({"codec": 1}, "codec must be a text"),
        ({"calibrate": 5}, "calibrate must be a text or a path or None, got 5"),
        ({"generation_config": 5}, "generation_config must be a text or a path"),
        ({"offline": "yes"}, "offline must be True or False, got 'yes'"),
    ],
    ids=str,
)
def test_a_value_of_another_kind_is_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refusal:
        Options.of(given, {})
    assert said in str(refusal.value)


def test_what_is_as_good_as_its_kind_is_taken(tmp_path: Path) -> None:
    given = {"dtype": torch.bfloat16, "context": np.int64(300), "memory": 8e9, "output": tmp_path, "throttle": 5}
    options = Options.of(given, {})
    assert (options.dtype, options.context) == ("bfloat16", 300)
    check_kinds(Options(), ())

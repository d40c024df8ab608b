"""A batch run that is killed leaves every line with exactly one record in the end."""

import os
from pathlib import Path

import pytest

import killed
from tests.frontends.conftest import environment, tiny  # noqa: F401


@pytest.mark.parametrize("kills", [3])
def test_a_batch_that_is_killed_goes_on(tiny: Path, tmp_path: Path, kills: int) -> None:  # noqa: F811
    # What others of the suite have compiled already is there.
    cache = os.environ["UNDERSTUDY_CACHE"]
    happened = killed.survive(str(tiny), tmp_path, kills, count=40, env=environment(tmp_path, UNDERSTUDY_CACHE=cache))
    assert happened["kills"] >= kills - 1 and happened["while answering"] >= 1 and happened["torn"] >= 1


def test_a_record_that_is_lost_or_doubled_is_noticed(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    record = '{"id": "1", "custom_id": "a", "response": null, "error": {"line": 1}}\n'
    output.write_text(record * 2)
    with pytest.raises(AssertionError, match="a has two records"):
        killed.texts(output)

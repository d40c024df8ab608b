"""Options that contradict one another are named, both of them."""

from __future__ import annotations

from typing import Any

import pytest

from understudy.errors import UsageError
from understudy.option_rules import check_devices, check_not_padded, check_prefixes
from understudy.options import Options


def unchecked(**given: Any) -> Options:
    return Options(**given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"split": "stages"}, "--split stages is for several devices"),
        ({"devices": "cuda:0,cuda:1", "device": "cpu"}, "contradicts --device cpu"),
        ({"devices": "cuda:0,cuda:1", "resident": "whole"}, "--resident whole is for one device"),
        ({"devices": "cuda:0,cuda:1", "split": "stages", "policy": "eqspec"}, "--split stages is not for left-padded batches"),
    ],
)
def test_several_devices_go_with_some_options_alone(given: dict[str, Any], words: str) -> None:
    check_devices(unchecked())
    with pytest.raises(UsageError, match=words):
        check_devices(unchecked(**given))


def test_prefixes_on_disk_keep_no_hidden_states_and_no_pads() -> None:
    check_prefixes(unchecked(prefix_cache="x"))
    for given, words in (({"taps": (1,)}, "keeps no hidden states"), ({"policy": "exspec"}, "not for left-padded batches")):
        with pytest.raises(UsageError, match=words):
            check_prefixes(unchecked(prefix_cache="x", **given))
    check_not_padded(unchecked(), "--spill")

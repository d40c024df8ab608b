"""A recipe names its Store: another quantiser, codec or text is another directory, and a text is read once."""

from pathlib import Path

import pytest

from understudy.errors import UsageError
from understudy.weights.recipe import (
    Recipe,
    calibration_text,
    check_calibration,
    checksum_of,
    quantizer_name,
)

CACHE = Path("/cache")


def test_content_and_recipe_make_the_directory() -> None:
    assert Recipe().store_path("org/model", "f" * 32, CACHE) == CACHE / "model-int4-raw-ffffffffffff"
    paths = {
        Recipe("int4", "raw").store_path("org/model", "f" * 32, CACHE),
        Recipe("int4", "delta").store_path("org/model", "f" * 32, CACHE),
        Recipe("int4:group=32", "raw").store_path("org/model", "f" * 32, CACHE),
        Recipe("int4", "raw").store_path("org/model", "e" * 32, CACHE),
        Recipe("int4", "raw", checksum_of("text")).store_path("org/model", "f" * 32, CACHE),
        Recipe("int4", "raw", head="int8").store_path("org/model", "f" * 32, CACHE),
    }
    assert len(paths) == 6 and all(path.parent == CACHE for path in paths)
    assert all(c.isalnum() or c in "-._" for path in paths for c in path.name)


def test_a_text_is_part_of_a_mix() -> None:
    assert quantizer_name("int3", None) == "int3"
    assert quantizer_name("mixed", None) == "mixed:bits=3.5"
    one, another = (quantizer_name("mixed:bits=4", text) for text in ("one text", "another text"))
    assert one.startswith("mixed:bits=4,calibrated=") and another.startswith("mixed:bits=4,calibrated=")
    assert one != another and one == quantizer_name("mixed:bits=4", "one text")


def test_texts_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xfa")
    assert calibration_text("none") is None and calibration_text(None), "none is no file, and none named is ours"
    for name, words in (("missing", "cannot be read"), ("empty", "no text"), ("bytes", "UTF-8")):
        with pytest.raises(UsageError, match=words):
            calibration_text(tmp_path / name)
    (tmp_path / "text").write_text("words")
    assert calibration_text(tmp_path / "text") == "words"


def test_a_text_needs_a_copy_that_is_fitted_and_a_checksum_is_not_chosen() -> None:
    for spec in ("int8", "exact"):
        with pytest.raises(UsageError, match="2, 3, 4 or mixed bits"):
            check_calibration(spec, calibrated=True)
    with pytest.raises(UsageError, match="--calibrate FILE"):
        check_calibration("mixed:calibrated=abc", calibrated=False)
    for spec in ("int4:group=32", "int2", "mixed"):
        check_calibration(spec, calibrated=True)
    check_calibration("int8", calibrated=False)

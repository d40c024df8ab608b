"""Options are checked before anything is read, and what follows from them is worked out once."""

from pathlib import Path
from typing import Any

import pytest

from understudy.errors import UsageError
from understudy.options import Options


def options(tmp_path: Path, **given: Any) -> Options:
    return Options.of(given, {"UNDERSTUDY_CACHE": str(tmp_path / "cache")})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"memroy": "1GiB"}, "Did you mean 'memory'"),
        ({"resident": "non"}, "Did you mean 'none'"),
        ({"device": "gpu"}, "cpu"),
        ({"codec": "detla"}, "Did you mean 'delta'"),
        ({"rows": 0}, "1 or more"),
        ({"bits": 5}, "4"),
        ({"bits": "mixed:bits=99"}, "between"),
        ({"head_bits": 5}, "--head-bits must be one of"),
        ({"head_bits": 8, "bits": "mixed"}, "a mix, which chooses"),
        ({"recipe_head": "int8"}, "No option 'recipe_head'"),
        ({"bits": "mixed:calibrated=abc"}, "--calibrate FILE"),
        ({"calibrate": "text", "bits": 8}, "2, 3, 4 or mixed bits"),
        ({"link": True, "codec": "raw"}, "choose one of them"),
        ({"link": True, "bits": 16}, "8 or fewer"),
        ({"prefix_cache_size": "3GB"}, "was not given"),
        ({"prefix_cache": "x", "prefix_cache_size": "3Gx"}, "--prefix-cache-size '3Gx' is not a number of bytes"),
        ({"prefix_cache": "x", "prefix_cache_size": 0}, "1 byte or more"),
        ({"prefix_cache": "x", "policy": "eqspec"}, "left-padded"),
        ({"kv_bits": 4}, "--kv-bits must be 8 or auto, got 4"),
        ({"kv_bits": 8, "spill": 64}, "leave it or --spill 64 out"),
        ({"kv_bits": 8, "devices": "cuda:0,cuda:1"}, "--kv-bits 8 is for one processor"),
        ({"kv_bits": 8, "prefix_cache": "x"}, "--prefix-cache, whose files hold exact ones"),
        ({"kv_bits": 8, "policy": "eqspec"}, "left-padded"),
        ({"cache": "/somewhere"}, "No option 'cache'"),
        ({"recipe_quantizer": "int4"}, "No option 'recipe_quantizer'"),
        ({"text": "words"}, "No option 'text'"),
    ],
)
def test_options_are_checked_before_anything_is_read(tmp_path: Path, given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        options(tmp_path, **given)


def test_bits_name_a_quantiser_unless_one_is_given(tmp_path: Path) -> None:
    assert options(tmp_path).recipe_quantizer == "int4" and options(tmp_path, bits=16).recipe_quantizer == "exact"
    assert options(tmp_path, bits="mixed").recipe_quantizer == "mixed:bits=3.5"
    assert options(tmp_path, bits=3, quantizer="int4:group=32").recipe_quantizer == "int4:group=32"


def test_the_head_has_8_bits_of_its_own_beside_fewer_unless_it_is_told(tmp_path: Path) -> None:
    for given in ({}, {"bits": 2}):
        assert options(tmp_path, **given).recipe_head == "int8" and options(tmp_path, **given).head_left_open
    alike = {"bits": 8}, {"bits": 16}, {"bits": "mixed"}, {"head_bits": 4}, {"bits": 3, "head_bits": 3}, {"quantizer": "int4"}
    for given in alike:
        assert not options(tmp_path, **given).recipe_head and not options(tmp_path, **given).head_left_open
    forced = options(tmp_path, head_bits=8, codec="raw")
    assert forced.recipe.head == "int8" and not forced.head_left_open
    assert options(tmp_path, bits=8, head_bits=4).recipe_head == "int4"
    assert not options(tmp_path).held_whole().recipe.head


def test_a_text_is_read_once(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("one text")
    chosen = options(tmp_path, bits="mixed", calibrate=text, codec="raw")
    text.unlink()
    assert chosen.text == "one text" and "calibrated=" in chosen.recipe.quantizer
    assert chosen.recipe.calibrated and chosen.recipe.calibrated in chosen.recipe.quantizer
    assert options(tmp_path, codec="raw").recipe.calibrated != chosen.recipe.calibrated
    assert not options(tmp_path, codec="raw", calibrate="none").recipe.calibrated
    assert chosen.held_whole().recipe.quantizer == "exact" and chosen.held_whole().text is None


def test_a_link_is_a_codec(tmp_path: Path) -> None:
    assert options(tmp_path, link=True).recipe.codec == "link"
    with pytest.raises(AssertionError, match="not chosen"):
        _ = options(tmp_path).recipe


def test_a_link_is_never_faster_than_it_is(tmp_path: Path) -> None:
    slow = options(tmp_path, throttle=100.0)
    assert [slow.slowed(link) for link in (0.0, 50.0, 1000.0)] == [100.0, 50.0, 100.0]
    assert [options(tmp_path).slowed(link) for link in (0.0, 50.0)] == [0.0, 50.0]

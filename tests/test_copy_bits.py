"""Bits that are left open: 6 where passes wait for the link long enough and there is room, else 4; given ones mean themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import save
from understudy import LLM, SamplingParams
from understudy.copy_bits import PAYS_FROM, fewer_bits
from understudy.errors import UsageError
from understudy.frontends import main
from understudy.options import Options
from understudy.planning import FORETOLD
from understudy.training.order import making

# A small model's config, of 126 million streamed weights.
SIZES = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "num_attention_heads": 16, "num_key_value_heads": 4,
    "vocab_size": 4096, "max_position_embeddings": 8192,
}  # fmt: skip
SLOW = "cpu:memory=16GB,disk=1GB/s,bandwidth=60GB/s"
USUAL, MORE = "int4, head int8", "int6, head int8"
ASKED: dict[str, Any] = {"resident": "none", "context": 512, "rows": 1}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": "bfloat16", **SIZES}))
    return tmp_path


def copy(config: Path, machine: str | None = SLOW, **options: Any) -> str:
    return LLM.plan_only(config=config, machine=machine, **{**ASKED, **options}).copy


def test_more_bits_are_chosen_from_so_many_levels_a_pass_on(config: Path) -> None:
    """The link is slow, or memory fast, enough that a pass waits as long as so many levels take."""
    levels = LLM.plan_only(config=config, machine=SLOW, bits=6, **ASKED).levels_of_a_pass
    assert levels > 2 * PAYS_FROM and copy(config) == MORE
    for more, expected in ((1.01, MORE), (0.99, USUAL)):
        disk, bandwidth = int(1e9 * levels / (PAYS_FROM * more)), int(60e9 / levels * PAYS_FROM * more)
        assert copy(config, f"cpu:memory=16GB,disk={disk}/s,bandwidth=60GB/s") == expected
        assert copy(config, f"cpu:memory=16GB,disk=1GB/s,bandwidth={bandwidth}/s") == expected


@pytest.mark.parametrize(
    "options",
    [
        {"codec": "raw"},
        {"link": True},
        {"dtype": "float32"},
        {"method": "none"},
        {"method": "ngram"},
        {"resident": "auto"},
        {"machine": "cuda:memory=2GB,link=1GB/s,bandwidth=60GB/s"},
        {"machine": None},
        {"machine": None, "throttle": 1e8},
    ],
)
def test_more_bits_are_not_chosen_where_they_save_no_waiting(options: dict[str, Any], config: Path) -> None:
    """No less is streamed, no copy drafts, nothing is streamed, an accelerator computes, or a speed is not known."""
    if options.get("dtype") == "float32":
        (config / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": "float32", **SIZES}))
    assert copy(config) == (USUAL if "dtype" in options else MORE)
    assert copy(config, **options) == USUAL


def test_more_bits_are_chosen_for_float16_too(config: Path) -> None:
    (config / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": "float16", **SIZES}))
    assert copy(config) == MORE and copy(config, codec="raw") == USUAL
    plans = [LLM.plan_only(config=config, machine=SLOW, bits=4, codec=codec, **ASKED) for codec in ("raw", "delta")]
    assert plans[1].streamed_bytes / plans[0].streamed_bytes == pytest.approx((7.7 + 3) / 16, abs=0.03)


def test_more_bits_are_chosen_where_they_fit_with_a_little_to_spare(config: Path) -> None:
    asked = {**ASKED, "codec": "delta"}
    least = LLM.plan_only(config=config, machine=SLOW, bits=6, head_bits=8, **asked).least_bytes
    enough = int(least * FORETOLD) + 1024
    assert copy(config, memory=enough, **asked) == MORE and copy(config, memory=least + 1024, **asked) == USUAL
    # What has to do at least is the smaller copy, and that works.
    open_, usual = (LLM.plan_only(config=config, machine=SLOW, memory=enough, bits=bits, **asked) for bits in ("auto", 4))
    assert open_.copy == MORE and open_.least_bytes == usual.least_bytes < least
    assert copy(config, memory=usual.least_bytes, **asked) == "int4"


def test_more_bits_leave_texts_as_much_room(config: Path) -> None:
    """Where the context is left open it is as long as beside the usual copy."""
    open_ = {**ASKED, "codec": "delta", "context": None, "head_bits": 8, "spill": "none"}
    least = LLM.plan_only(config=config, machine=SLOW, bits=6, **{**open_, "context": 4096}).least_bytes
    assert copy(config, **open_, memory=int(least * FORETOLD) + 1024) == MORE
    short = least - (1 << 20)
    assert LLM.plan_only(config=config, machine=SLOW, bits=6, memory=short, **open_).context < 4096
    usual = LLM.plan_only(config=config, machine=SLOW, memory=short, **open_)
    assert (usual.copy, usual.context) == (USUAL, 4096) and copy(config, **{**open_, "context": 512}, memory=short) == MORE


def test_bits_that_are_given_are_taken(config: Path) -> None:
    assert [copy(config, bits=bits) for bits in (4, 6, 3)] == [USUAL, MORE, "int3, head int8"]
    assert copy(config, quantizer="int4") == "int4" and copy(config, bits="auto") == MORE
    # Bits of the head are its own whatever the copy has.
    assert [copy(config, head_bits=bits) for bits in (4, 6, 8)] == ["int6, head int4", "int6", MORE]


@pytest.mark.parametrize("bits", [6, 8])
def test_fewer_bits_are_named_where_they_fit(bits: int, config: Path) -> None:
    """Of the smaller copies the first that fits, as `plan --chat` and `doctor` name them; it does fit."""
    usual = LLM.plan_only(config=config, machine=SLOW, bits=4, head_bits=4, **ASKED).least_bytes
    with pytest.raises(UsageError, match=r"too small: .* It fits with --bits 4\.$"):
        copy(config, bits=bits, memory=usual + 1024)
    for given in {"bits": bits}, {}:
        with pytest.raises(UsageError, match=r"too small: .* It fits with --bits mixed:bits=3\.5\.$"):
            copy(config, memory=usual - 1024, **given)
    assert copy(config, memory=usual - 1024, bits="mixed:bits=3.5") == "mixed:bits=3.5"
    # A mix has no head of its own bits.
    for given in {"bits": bits}, {}:
        with pytest.raises(UsageError, match=r"too small: .* It fits with --bits 3\.$"):
            copy(config, memory=usual - 1024, head_bits=4, **given)
    assert copy(config, memory=usual - 1024, head_bits=4, bits=3) == "int3, head int4"


def test_smaller_copies_are_those_that_bits_would_say() -> None:
    """With the head's bits where they were asked for, and without own ones where they were not."""

    def smaller(**given: Any) -> list[tuple[int | str, str, str]]:
        asked = Options.of({"codec": "delta", **given}, {})
        found = list(fewer_bits(asked))
        for bits, fewer in found:
            said = Options.of({"codec": "delta", **given, "bits": bits, "quantizer": None}, {})
            assert (said.recipe_quantizer, said.bits_left_open) == (fewer.recipe_quantizer, fewer.bits_left_open)
            assert "head_bits" not in given or said.recipe_head == fewer.recipe_head
        return [(bits, fewer.recipe_quantizer, fewer.recipe_head) for bits, fewer in found]

    below = [("mixed:bits=3.5", "mixed:bits=3.5", ""), (3, "int3", ""), (2, "int2", "")]
    assert smaller() == smaller(bits=4) == smaller(quantizer="int4") == below
    assert smaller(bits=6) == smaller(bits=8) == [(4, "int4", ""), *below]
    assert smaller(bits=6, head_bits=8) == [(4, "int4", "int8"), (3, "int3", "int8"), (2, "int2", "int8")]
    assert smaller(bits=8, head_bits=4) == [(4, "int4", ""), (3, "int3", "int4"), (2, "int2", "int4")]
    assert smaller(bits=2) == smaller(bits=16) == smaller(method="none") == []


def test_commands_take_auto_and_tell_what_was_chosen(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--config", str(config), "--for", SLOW, "--resident", "none", "--context", "512"]
    for more, told in (["--bits", "auto"], "int6"), ([], "int6"), (["--bits", "4"], "int4"):
        assert main([*words, *more]) == 0
        assert f"copy of the weights: {told}, head int8\n" in capsys.readouterr().out
    (config / "options.toml").write_text('bits = "auto"\n')
    assert main([*words[:2], str(config / "options.toml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["copy"] == USUAL, "the built-in model is held whole here"


@pytest.fixture(scope="module")
def tiny_bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place: Path = tmp_path_factory.mktemp("copies") / "model"
    save(place, "llama", torch.bfloat16)
    return place


def test_a_model_behind_a_slow_link_drafts_by_6_bits_and_says_what_it_says_without(
    tiny_bf16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow: dict[str, Any] = {"memory": "1GiB", "context": 64, "resident": "none", "codec": "delta", "throttle": 2e7}
    texts, made, said = [], [], list[str]()
    for place, options in ("drafted", {}), ("plain", {"method": "none"}):
        monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / place))
        with LLM(tiny_bf16, progress=lambda what, *_: said.append(what), **slow, **options) as llm:
            done = llm.generate([5, 9, 33], SamplingParams(max_new_tokens=12, ignore_eos=True))[0]
            assert done.stats.bytes_streamed > 0
        texts.append(done.token_ids)
        made.append(llm.store.recipe.copy)
    assert texts[0] == texts[1] and made == [MORE, USUAL]
    first, second = (line for line in said if line.startswith("Preparing "))
    assert "once with a copy of 6 bits (--bits 4 takes less memory): " in first and "once with a copy of 4 bits: " in second


def test_all_methods_of_a_bench_have_the_copy_of_one_that_drafts(
    tiny_bf16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path))
    slow = ["--memory", "1GiB", "--context", "128", "--resident", "none", "--codec", "delta", "--throttle", "20MB"]
    few = ["--temperatures", "0", "--prompts", "1", "--prompt-tokens", "8", "--new-tokens", "4", "--json"]
    assert main(["bench", str(tiny_bf16), "--methods", "none,substitute", *slow, *few]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 2
    assert [path.parent.name.split("-")[1] for path in tmp_path.glob("*/index.json")] == ["int6"]


def test_who_prepares_gets_what_a_run_would_take(tiny_bf16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow: dict[str, Any] = {"memory": "1GiB", "context": 64, "resident": "none", "codec": "delta", "throttle": 2e7}
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path))
    for options, expected in ((slow, "int6"), ({**slow, "throttle": 1e13}, "int4"), ({**slow, "bits": 4}, "int4")):
        store = LLM.prepare(tiny_bf16, output=tmp_path / "store", **options)
        assert store.recipe.quantizer == expected
        # A directory that is a Store is taken as it is, unless other bits are asked for.
        assert LLM.prepare(tiny_bf16, output=tmp_path / "store", **{**slow, "bits": "auto", "throttle": 0.0}).recipe == store.recipe
        assert LLM.plan_only(store.path, **slow).copy == store.recipe.copy
        with pytest.raises(UsageError, match="--bits 3 is for preparing"):
            LLM.plan_only(store.path, bits=3)
        (tmp_path / "store").rename(tmp_path / f"store-{len(list(tmp_path.iterdir()))}")
    # In too little memory for any plan it is made all the same.
    assert LLM.prepare(tiny_bf16, memory="100MiB").recipe.copy == "int4"


SLOW_LINK: dict[str, Any] = {"context": 64, "resident": "none", "codec": "delta", "throttle": 2e7, "rows": 1}


def test_who_prepares_or_verifies_takes_what_is_there_in_any_memory(
    tiny_bf16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path))
    there = LLM.prepare(tiny_bf16, bits=6, codec="delta")
    assert LLM.prepare(tiny_bf16, memory="1MB", codec="delta").path == there.path
    assert main(["verify", str(tiny_bf16), "--codec", "delta"]) == 0
    assert len(list(tmp_path.glob("*/index.json"))) == 1


def test_a_model_that_just_fits_is_prepared_once(tiny_bf16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Store that is there needs nothing to spare, which was asked for when its sizes were foretold."""
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path))
    there = LLM.prepare(tiny_bf16, bits=6, codec="delta")
    least = LLM.plan_only(there.path, **SLOW_LINK).least_bytes
    said: list[str] = []
    for memory, copy, made in ((least, MORE, 1), (least - 1024, "int4", 2)):
        plan = LLM.plan_only(tiny_bf16, memory=memory, **SLOW_LINK)
        assert plan.copy == copy
        with LLM(tiny_bf16, memory=memory, progress=lambda what, *_: said.append(what), **SLOW_LINK) as llm:
            assert llm.plan.copy == copy
        assert len(list(tmp_path.glob("*/index.json"))) == made == 1 + sum(line.startswith("Preparing ") for line in said)


def test_options_that_no_run_has_do_not_keep_one_from_preparing(
    tiny_bf16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path))
    for _ in range(2):
        assert LLM.prepare(tiny_bf16, context=10**6, codec="delta").recipe.quantizer == "int4"
    with pytest.raises(UsageError, match="positions"):
        LLM.plan_only(tiny_bf16, context=10**6, codec="delta")


def test_a_bench_that_does_not_fit_prepares_nothing(
    tiny_bf16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path))
    assert main(["bench", str(tiny_bf16), "--methods", "none,substitute", "--memory", "100MiB"]) == 2
    assert "too small" in capsys.readouterr().err and not list(tmp_path.glob("*/index.json"))


def test_a_store_is_made_for_the_memory_that_a_training_has() -> None:
    given = {"memory": "1GiB", "resident": "none", "bits": "auto", "tier": "disk", "prefix_cache": "here"}
    assert making(given) == {"memory": "1GiB", "resident": "none", "bits": "auto"}

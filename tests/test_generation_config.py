"""A model's generation_config.json gives the defaults of a request; what the caller gives wins; what is not supported is named."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import save
from understudy import LLM, SamplingParams
from understudy.errors import CheckpointError, UsageError
from understudy.generation_config import (
    NAME,
    UNSUPPORTED,
    UNSUPPORTED_SAMPLING,
    GenerationDefaults,
    defaults_of,
    end_marks,
    read,
)

SAMPLED = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.05}


def defaults(**content: Any) -> GenerationDefaults:
    return GenerationDefaults.of(content, Path(NAME))


def resolved(content: dict[str, Any], prompt_tokens: int = 5, **given: Any) -> SamplingParams:
    return defaults(**content).resolved(SamplingParams(**given), prompt_tokens)


def test_the_file_gives_the_defaults() -> None:
    params = resolved({**SAMPLED, "max_new_tokens": 7, "stop_strings": ["\n\n"]})
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.6, 0.9, 20, 0.05)
    assert (params.max_new_tokens, params.stop) == (7, ("\n\n",))
    assert resolved({"do_sample": True}).temperature == 1.0, "as in transformers"
    penalised = resolved({"repetition_penalty": 1.05, "min_new_tokens": 3})
    assert (penalised.repetition_penalty, penalised.min_tokens) == (1.05, 3)
    assert resolved({"repetition_penalty": 1.05}, repetition_penalty=1.0).repetition_penalty == 1.0
    assert resolved({}) == SamplingParams()
    assert resolved({"do_sample": True, "top_k": -1}).top_k == 0, "off, as in vLLM"


@pytest.mark.parametrize("content", [{}, {"do_sample": False}, {"do_sample": None}])
def test_without_do_sample_it_is_greedy(content: dict[str, Any]) -> None:
    assert resolved({"temperature": 0.6, **content}).temperature == 0.0
    assert resolved({"temperature": 0.6, "top_p": 0.9, **content}, temperature=0.7).top_p == 0.9, "if sampled, then like this"


@pytest.mark.parametrize(
    "given", [{"temperature": 0.0}, {"temperature": 1.5}, {"top_p": 1.0}, {"top_k": 0}, {"min_p": 0.0}, {"stop": "x"}], ids=str
)
def test_what_is_given_wins(given: dict[str, Any]) -> None:
    content = {**SAMPLED, "stop_strings": "end"}
    (name,) = given
    expected = resolved(content)
    params = resolved(content, **given)
    assert getattr(params, name) == getattr(SamplingParams(**given), name) != getattr(expected, name)
    for other in {"temperature", "top_p", "top_k", "min_p", "stop"} - {name}:
        assert getattr(params, other) == getattr(expected, other)


def test_max_length_counts_the_prompt() -> None:
    assert resolved({"max_length": 50}, 20).max_new_tokens == 30
    assert resolved({"max_length": 50, "max_new_tokens": 9}, 20).max_new_tokens == 9
    assert resolved({"max_length": 50}, 60, max_new_tokens=128).max_new_tokens == 128
    with pytest.raises(UsageError, match="max_length"):
        resolved({"max_length": 50}, 50)


def test_a_sampled_text_draws_a_seed_of_its_own() -> None:
    seeds = {resolved(SAMPLED).seed for _ in range(8)}
    assert len(seeds) > 6 and all(0 <= seed < 2**63 for seed in seeds)
    assert resolved(SAMPLED, seed=0).seed == 0, "a seed that is given stays, 0 too"
    assert resolved({}).seed == 0 and not resolved({}).gives("seed"), "greedy text needs none"


@pytest.mark.parametrize("name", [*UNSUPPORTED, *UNSUPPORTED_SAMPLING])
def test_what_is_not_supported_is_named(name: str) -> None:
    off = {**UNSUPPORTED, **UNSUPPORTED_SAMPLING}[name]
    for value in (None, *off):
        assert not defaults(**{**SAMPLED, name: value}).lines(SamplingParams(temperature=1))[1:]
    (line,) = defaults(do_sample=True, **{name: 3}).lines(SamplingParams(temperature=1.0))
    assert f"asks for {name} 3: not supported" in line and NAME in line
    greedy = defaults(do_sample=True, **{name: 3}).lines(SamplingParams(temperature=0))
    assert len(greedy) == (name in UNSUPPORTED), "what is for sampled text only does not matter to greedy text"


def test_what_comes_from_the_file_is_said_in_one_line() -> None:
    found = defaults(**SAMPLED, max_new_tokens=9, repetition_penalty=1.05, num_beams=4, bad_words_ids=[[1]])
    assert found.lines(SamplingParams(top_p=0.5)) == [
        f"From {NAME}: temperature 0.6, top_k 20, min_p 0.05, max_new_tokens 9, repetition_penalty 1.05"
        " (--generation-config none: not).",
        f"{NAME} asks for num_beams 4, bad_words_ids: not supported, the text is the one without.",
    ]
    assert found.lines(SamplingParams(temperature=0)) == [
        f"From {NAME}: max_new_tokens 9, repetition_penalty 1.05 (--generation-config none: not).",
        *found.warnings,
    ]
    assert defaults(eos_token_id=2, use_cache=True).lines(SamplingParams()) == []


def test_what_is_given_for_sampled_text_and_changes_nothing_is_said() -> None:
    given = {"top_p": 0.5, "top_k": 3, "seed": 7}
    told = "top_p 0.5, top_k 3, seed 7: without effect, the text is greedy (a temperature above 0 draws tokens)."
    assert defaults().lines(SamplingParams(**given)) == [told]
    assert defaults(**SAMPLED).lines(SamplingParams(temperature=0, **given))[-1:] == [told]
    assert defaults().lines(SamplingParams(temperature=1, **given)) == []
    assert told not in defaults(**SAMPLED).lines(SamplingParams(**given))


@pytest.mark.parametrize(
    "content",
    [
        *({"do_sample": True, "temperature": value} for value in ("hot", -1, True, [0.5], float("nan"), float("inf"))),
        *({"top_p": value} for value in (0, 2, "x")),
        *({"top_k": value} for value in (2.5, "x", {})),
        *({"min_p": value} for value in (-0.1, 1.1)),
        *({"repetition_penalty": value} for value in (0, -1, "x")),
        *({name: value} for name in ("max_new_tokens", "max_length") for value in (0, -5, 1.5, "x")),
        *({"do_sample": value} for value in (1, "yes")),
        *({"stop_strings": value} for value in (3, [3], [""])),
    ],
    ids=str,
)
def test_values_that_make_no_sense_are_one_line(content: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=f"^{NAME}: [a-z_]+ must be") as said:
        defaults(**content)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "\xff", "[" * 100_000])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=NAME):
        read(tmp_path / NAME)
    (tmp_path / NAME).unlink()
    assert read(tmp_path / NAME) == {}
    (tmp_path / NAME).mkdir()
    with pytest.raises(CheckpointError, match=NAME):
        read(tmp_path / NAME)


def test_whose_file_it_is_may_be_chosen(tmp_path: Path) -> None:
    model, other = tmp_path / "model", tmp_path / "other"
    for place, temperature in ((model, 0.5), (other, 0.9)):
        place.mkdir()
        (place / NAME).write_text(json.dumps({"do_sample": True, "temperature": temperature}))
    for choice, expected in (("auto", 0.5), ("none", 0.0), (other, 0.9), (str(other / NAME), 0.9)):
        assert defaults_of(choice, model).resolved(SamplingParams(), 1).temperature == expected
    with pytest.raises(UsageError, match="missing"):
        defaults_of(tmp_path / "missing", model)
    (model / NAME).unlink()
    assert defaults_of("auto", model).lines(SamplingParams()) == []


@pytest.mark.parametrize("value", ["2", 2.0, True, [[2]], [2, None], {"id": 2}], ids=str)
def test_an_end_mark_of_a_wrong_type_is_one_line(value: object) -> None:
    with pytest.raises(CheckpointError, match="eos_token_id"):
        end_marks(value, NAME, 256)


def test_an_end_mark_that_cannot_be_written_is_named() -> None:
    assert end_marks(None, NAME, 256) == (set(), [])
    assert end_marks([3, 255], NAME, 256) == ({3, 255}, [])
    ids, (first, second) = end_marks([3, 256, -1], NAME, 256)
    assert ids == {3} and "256, which is not in the vocabulary of 256" in first and "-1" in second


def test_a_model_writes_as_its_file_says(tmp_path: Path) -> None:
    save(tmp_path / "model", "llama", torch.bfloat16)
    (tmp_path / "model" / NAME).write_text(
        json.dumps({**SAMPLED, "temperature": 1.3, "max_new_tokens": 12, "eos_token_id": [0, 999], "num_beams": 2})
    )
    with pytest.warns(UserWarning, match="num_beams 2: not supported"):
        llm = LLM(tmp_path / "model", rows=2, context=64, memory="1GiB", method="none")
    with llm:
        assert llm.stop_ids == {0} and any("999" in line for line in llm.generation.warnings)
        first, second = llm.generate(["abc", "abc"])
        assert first.stats.seed != second.stats.seed and first.token_ids != second.token_ids
        assert len(first.token_ids) <= 12 >= len(second.token_ids)
        given = SamplingParams(1.3, 0.9, 20, 0.05, first.stats.seed or 0, 12)
        assert llm.generate("abc", given)[0].token_ids == first.token_ids, "the seed that was told gives the text again"
        (greedy,) = llm.generate("abc", SamplingParams(temperature=0, ignore_eos=True))
        assert greedy.stats.seed is None and len(greedy.token_ids) == 12
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llm = LLM(tmp_path / "model", rows=1, context=64, memory="1GiB", method="none", generation_config="none", progress=print)
    with llm:
        (plain,) = llm.generate("abc", SamplingParams(ignore_eos=True, max_new_tokens=12))
        assert plain.token_ids == greedy.token_ids and llm.generation.values == {}

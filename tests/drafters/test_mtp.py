"""`mtp` drafts with the layer that a checkpoint brings along: the text is plain, and what the layer knows of it is accepted."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.mtp import MTP, SEVERAL, fit_mtp, publish_mtp, quantise_mtp, several_tensors
from tests.tiny import opened, save, stock
from understudy import LLM, SamplingParams
from understudy.drafters import spec_of
from understudy.drafters.head_suggest import HEAD
from understudy.errors import CheckpointError, UsageError

PROMPTS = [[5, 99, 5, 12, 80, 5, 99, 5], [7, 8, 9, 250, 31, 7, 8, 9]]
GREEDY = SamplingParams(max_new_tokens=32, ignore_eos=True)
SAMPLED = SamplingParams(max_new_tokens=32, ignore_eos=True, temperature=0.7, seed=3)


def texts_of(llm: LLM) -> list[list[int]]:
    return [done.token_ids for params in (GREEDY, SAMPLED) for done in llm.generate(PROMPTS, params)]


@pytest.fixture(scope="module")
def brought(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, list[list[int]]]]:
    """By family: a checkpoint whose layer was fitted to the texts that it writes, and these texts."""
    made: dict[str, tuple[Path, list[list[int]]]] = {}

    def of(family: str) -> tuple[Path, list[list[int]]]:
        if family not in made:
            place = tmp_path_factory.mktemp(family) / "model"
            model = publish_mtp(place, family, torch.bfloat16)
            with opened(place, method="none", rows=2, output=place.with_name("plain")) as llm:
                texts = texts_of(llm)
            fit_mtp(place, model, [prompt + text for prompt, text in zip(PROMPTS * 2, texts, strict=True)])
            made[family] = place, texts
        return made[family]

    return of


@pytest.mark.parametrize(("family", "link"), [
    ("qwen3_5_text", False), ("glm4", True),
    ("qwen3_next", True), ("qwen3_5_moe", False), ("deepseek_v3", False), ("glm4_moe", True),
])  # fmt: skip
def test_drafted_text_is_plain_text_and_what_the_layer_knows_is_accepted(
    family: str, link: bool, brought: Callable[[str], tuple[Path, list[list[int]]]]
) -> None:
    """A layer that is given the hidden states of other tokens than those before its own agrees with nothing."""
    model, plain = brought(family)
    with opened(model, method="mtp:width=2,depth=4", rows=2, link=link, output=model.with_name("store")) as llm:
        done = [done for params in (GREEDY, SAMPLED) for done in llm.generate(PROMPTS, params)]
        assert llm.plan.items["draft head"] > sum(stored.nbytes for stored in llm.store.extra.values())
    assert [each.token_ids for each in done] == plain
    assert all(each.stats.accepted >= 12 and each.stats.bytes_streamed > 0 for each in done), [x.stats.accepted for x in done]


@pytest.mark.parametrize("family", ["qwen3_next", "qwen3_5_moe", "deepseek_v3", "glm4_moe"])
@pytest.mark.parametrize("method", ["mtp:bits=4", "substitute:suggest=mtp"])
def test_a_mixture_drafts_alone_and_in_front_of_the_copy(
    method: str, family: str, brought: Callable[[str], tuple[Path, list[list[int]]]]
) -> None:
    model, plain = brought(family)
    with opened(model, method=method, output=model.with_name("store-in-front")) as llm:
        done = [llm.generate(prompt, params)[0] for params in (GREEDY, SAMPLED) for prompt in PROMPTS]
        assert llm.plan.items["draft head"] > 0
    assert [each.token_ids for each in done] == plain
    assert all(each.stats.accepted > 0 and each.stats.bytes_streamed > 0 for each in done), [x.stats.accepted for x in done]
    if method.startswith("substitute"):
        assert sum(each.stats.suggested.get(HEAD, 0) for each in done) > 0, "the layer named none of the tokens"


@pytest.mark.parametrize(("family", "form", "method"), [
    ("deepseek_v3", "fp8", "mtp:width=2,depth=4"), ("deepseek_v3", "fp8", "substitute:suggest=mtp"),
    ("qwen3_next", "fp8", "mtp:bits=16"), ("glm4_moe", "channels", "mtp:width=2,depth=4"), ("glm4", "int4", "mtp:bits=4"),
])  # fmt: skip
def test_a_layer_that_is_published_quantised_drafts(family: str, form: str, method: str, tmp_path: Path) -> None:
    model = publish_mtp(tmp_path / "model", family, torch.bfloat16)
    quantise_mtp(tmp_path / "model", "model.safetensors", form)
    with opened(tmp_path / "model", method="none", rows=2, output=tmp_path / "plain") as llm:
        plain = texts_of(llm)
    texts = [prompt + text for prompt, text in zip(PROMPTS * 2, plain, strict=True)]
    # the hidden states are about those of the weights before they were quantised
    fit_mtp(tmp_path / "model", model, texts)
    quantise_mtp(tmp_path / "model", "model-mtp.safetensors", form)
    with opened(tmp_path / "model", method=method, rows=2, output=tmp_path / "store") as llm:
        done = [done for params in (GREEDY, SAMPLED) for done in llm.generate(PROMPTS, params)]
        assert llm.plan.items["draft head"] > 0
    assert [each.token_ids for each in done] == plain
    assert all(each.stats.accepted > 0 and each.stats.bytes_streamed > 0 for each in done), [x.stats.accepted for x in done]
    if method.startswith("substitute"):
        assert sum(each.stats.suggested.get(HEAD, 0) for each in done) > 0, "the layer named none of the tokens"


@pytest.fixture(scope="module", params=["glm4", "mimo_v2_flash", "qwen3_next"])
def several(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, list[list[int]]]:
    """A family, its checkpoint whose several layers were fitted to the texts that it writes, and these."""
    family, place = request.param, tmp_path_factory.mktemp(request.param) / "model"
    changes = {"num_nextn_predict_layers": SEVERAL[family]} if "num_nextn_predict_layers" in MTP[family].changes else {}
    tensors = several_tensors(family, torch.bfloat16, stock(family, torch.bfloat16, **MTP[family].changes))
    model = publish_mtp(place, family, torch.bfloat16, tensors, **changes)
    with opened(place, method="none", rows=2, output=place.with_name("plain")) as llm:
        texts = texts_of(llm)
    fit_mtp(place, model, [prompt + text for prompt, text in zip(PROMPTS * 2, texts, strict=True)])
    return family, place, texts


@pytest.mark.parametrize("method", ["mtp", "mtp:width=1,depth={}", "mtp:bits=4", "substitute:suggest=mtp"])
def test_several_layers_draft_a_token_each(method: str, several: tuple[str, Path, list[list[int]]]) -> None:
    family, model, plain = several
    deepest = SEVERAL[family]
    with opened(model, method=method.format(deepest), rows=2, output=model.with_name("store")) as llm:
        done = [done for params in (GREEDY, SAMPLED) for done in llm.generate(PROMPTS, params)]
        again = [llm.generate(prompt, GREEDY)[0].token_ids for prompt in PROMPTS]
        assert llm.plan.items["draft head"] > 0
    assert [each.token_ids for each in done] == plain and again == plain[:2]
    assert all(each.stats.accepted > 0 and each.stats.bytes_streamed > 0 for each in done), [x.stats.accepted for x in done]
    if method.startswith("substitute"):
        assert sum(each.stats.suggested.get(HEAD, 0) for each in done) > 0, "the layers named none of the tokens"
    elif "width" in method:
        # one layer alone gives no more than a token a pass, and what was fitted is known to the last
        assert max(each.stats.mean_accepted for each in done) > 2, [each.stats.mean_accepted for each in done]


def test_a_draft_that_is_deeper_than_there_are_layers_is_refused(several: tuple[str, Path, list[list[int]]]) -> None:
    family, model, _ = several
    with pytest.raises(UsageError, match=rf"depth=5 is too deep: .* brings {SEVERAL[family]} layers, which draft"):
        opened(model, method="mtp:width=2,depth=5", output=model.with_name("store"))


def test_a_checkpoint_without_such_a_layer_is_refused_before_any_work(tmp_path: Path) -> None:
    save(tmp_path / "model", "qwen2", torch.bfloat16)
    with pytest.raises(UsageError, match=r"no layer for multi-token .* none, ngram, substitute\.$") as refusal:
        opened(tmp_path / "model", method="mtp", output=tmp_path / "store")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "store").exists()


def test_one_that_lacks_a_tensor_is_refused_before_any_work(tmp_path: Path) -> None:
    publish_mtp(tmp_path / "model", "glm4", torch.bfloat16)
    file = tmp_path / "model" / "model-mtp.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.3.hnorm.weight"]
    save_file(tensors, file, {"format": "pt"})
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"model.layers.3.hnorm.weight": "model-mtp.safetensors", ', ""))
    with pytest.raises(CheckpointError, match=r"there is no tensor 'model\.layers\.3\.hnorm\.weight'"):
        opened(tmp_path / "model", method="mtp", output=tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_it_takes_no_value() -> None:
    assert spec_of("mtp:width=3,depth=5").deepest == 5
    with pytest.raises(UsageError, match="should be key=value"):
        spec_of("mtp:somewhere")

"""Asks every kind of causal and multimodal model that transformers has whether it runs, and writes the answer to docs/models.md.

    python tests/survey.py     (a few minutes; not part of the suite)

A kind is tried as the tests have it, else with the values its config class has by default, and a wrapper whose defaults do not
fit each other with small parts: by its config first, then by the proof that every model passes before it is run. Each is tried in
a process of its own, with a limit: what transformers does with a config is not known before."""

import multiprocessing
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, __version__
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.tiny import FAMILIES, MIXTURES, MORE_FAMILIES, WRAPPERS, sections, values_of, wrapper
from understudy.errors import UnderstudyError
from understudy.models.proving import proof
from understudy.models.stock.refusals import refuse_unsupported
from understudy.models.stock.wrapper import is_wrapper, text_config, that_writes

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
RUNS = "runs"
# Seconds that a kind may take.
LIMIT = 300
ALL = (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES)
# Text models of wrappers whose config classes have no usable values by default.
SIZED: dict[str, dict[str, Any]] = {
    "aya_vision": {"text": "cohere2", "logit_scale": 0.5},
    "cohere_compass": {"text": "cohere_compass_text", **MORE_FAMILIES["cohere_compass_text"]},
    "glm46v": sections(2, 1, 1, partial_rotary_factor=0.5),
    "glmga": sections(2, 1, 1, partial_rotary_factor=0.5),
    "hunyuan_vl": {"head_dim": 16, **sections(2, 2, 2, 2)},
}
# What the config classes of wrappers leave out by default.
PARTS: dict[str, dict[str, Any]] = {"perception_lm": {"vision_config": {"model_args": {"embed_dim": 64}}}}
# Layers as they are published, of kinds whose config classes have others by default.
_SPARSE = {"layer_types": ["full_attention"] * 3 + ["minimax_m3_sparse"] * 57}
# A kind that is the text model of others alone is tried in one of them.
PUBLISHED: dict[str, dict[str, Any]] = {
    "minimax_m3_vl_text": _SPARSE,
    "minimax_m3_vl": {"text_config": _SPARSE},
    "mistral4": {"model_type": "mistral3", "text_config": {"model_type": "mistral4"}},
}
# Words of a refusal -> the heading under which the kind stands. The first that is found counts.
REASONS = {
    "attention is sparse": "Sparse attention: an index chooses the earlier tokens that a layer looks at",
    "holds experts in a way": "Mixtures whose experts are built in a way that is not supported yet",
    "recurrent": "Recurrent layers of a kind that is not known yet",
    "encoder-decoder": "Encoder-decoders",
    "multimodal": "Several modalities, and no text model that could be taken out",
    "an encoder, which": "Encoders: each token sees those after it",
    "later tokens": "Encoders: each token sees those after it",
    "computes attention": "transformers' own code computes attention in a way of its own, which cannot be replaced",
    "replace the attention": "transformers' own code computes attention in a way of its own, which cannot be replaced",
    "in modules of class": "Weights are not in nn.Linear modules",
    "outside any plain Linear": "Weights are not in nn.Linear modules",
}
OTHER = "Something else, which a line names"
HEAD = f"""# Does my model run?

`understudy plan --config DIR` answers for any model, from its config.json alone. This page is made by `python tests/survey.py`,
which asks the same of every kind of causal and multimodal model of transformers {__version__}, under the name that a config.json
gives as `model_type`. Before a model runs for the first time, a small random copy of it is compared with transformers in float32
(see [architecture](architecture.md)), so a kind that stands below may still be refused with switches that change what it computes,
and a new one runs as soon as transformers has it, if it is built like these.

## Kinds that run
"""
WHERE = """\
Mixtures of experts run on the processor, or on one other device. Models whose keys are compressed (`deepseek_v4`), whose index has
keys of blocks (`glm5_next`, `qwen4_exp_text`), whose attention adds a bias by distance (`inkling_text`), and those each head of
which chooses what it looks at (`minimax_m3_vl_text`), run on the processor alone."""
# From this heading on the page is written by hand.
BY_HAND = "## Checkpoints that are published quantised"


def configs_of(kind: str) -> Iterator[Any]:
    """The configs that a kind may be tried with, best first."""
    if kind in PUBLISHED:
        values = {"model_type": kind, **PUBLISHED[kind]}
        yield CONFIG_MAPPING[values.pop("model_type")](**values)
        return
    if (writes := f"{kind}_thinker") in WRAPPERS:
        yield CONFIG_MAPPING[kind](thinker_config=wrapper(writes))
        return
    if kind in WRAPPERS or kind in SIZED:
        yield wrapper(kind, **SIZED.get(kind, {}))
        return
    if kind in {**FAMILIES, **MORE_FAMILIES, **MIXTURES}:
        yield AutoConfig.for_model(**values_of(kind))
        return
    config = CONFIG_MAPPING[kind](**PARTS.get(kind, {}))
    yield config
    if is_wrapper(config):
        yield wrapper(kind)


def answer(kind: str) -> str:
    """RUNS, or the line that says why not: of the first config."""
    said = []
    try:
        said += map(_answer, configs_of(kind))
    except proof.STUMBLES as error:
        said.append(f"its config class has no usable values by default ({error})")
    return RUNS if RUNS in said else said[0]


def _answer(config: Any) -> str:
    try:
        config = that_writes(config)
        text = text_config(config)
        values = {**text.to_dict(), "layer_types": getattr(text, "layer_types", None)}
        refuse_unsupported(*((values,) if text is config else (config.to_dict(), values)))
        return proof.fault(config) or RUNS
    except UnderstudyError as refusal:
        return " ".join(str(refusal).split())


def answered(kind: str) -> tuple[str, bool]:
    """The answer of a process of its own, and whether the kind is a wrapper's."""
    ends = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_tell, args=(kind, ends[1]), daemon=True)
    process.start()
    ends[1].close()
    try:
        return ends[0].recv() if ends[0].poll(LIMIT) else (f"no answer in {LIMIT} s", False)
    except EOFError:
        return "its process ended without an answer", False
    finally:
        process.kill()
        process.join()


def _tell(kind: str, end: Any) -> None:
    said = answer(kind)
    end.send((said, said == RUNS and is_wrapper(next(configs_of(kind)))))


def heading(said: str) -> str:
    return next((name for words, name in REASONS.items() if words in said), OTHER)


def page(answers: dict[str, str], wrappers: set[str]) -> str:
    """The whole page of the answers by kind; `wrappers`: those of multimodal models."""
    running = sorted(kind for kind, said in answers.items() if said == RUNS)
    several = [kind for kind in running if kind in wrappers]
    plain = [kind for kind in running if kind not in several]
    lines = [HEAD, ", ".join(f"`{kind}`" for kind in plain) + ".", ""]
    lines += ["Of these multimodal kinds the text model runs: " + ", ".join(f"`{kind}`" for kind in several) + ".", ""]
    lines += [WHERE, "", "## Kinds that are refused", ""]
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    for kind, said in sorted(answers.items()):
        if said != RUNS:
            reasons[heading(said)].append(kind)
    lines += ["| why | kinds |", "|---|---|"]
    order = [*dict.fromkeys(REASONS.values()), OTHER]
    lines += [f"| {why} | {', '.join(f'`{kind}`' for kind in reasons[why])} |" for why in order if reasons[why]]
    return "\n".join(lines) + "\n"


def main() -> int:
    warnings.simplefilter("ignore")
    answers, wrappers = {}, set()
    known = {kind for kind in {**FAMILIES, **MORE_FAMILIES, **MIXTURES, **WRAPPERS} if kind in CONFIG_MAPPING}
    for kind in sorted({*known, *(kind for names in ALL for kind in names)}):
        answers[kind], wraps = answered(kind)
        wrappers |= {kind} if wraps else set()
        print(f"{kind}: {answers[kind]}", file=sys.stderr, flush=True)
    before = PAGE.read_text()
    PAGE.write_text(page(answers, wrappers) + "\n" + before[before.index(BY_HAND) :])
    return 0


if __name__ == "__main__":
    sys.exit(main())

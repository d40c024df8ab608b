"""What a model's generation_config.json says: defaults of its sampling, the tokens that end a text, what is not supported."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .errors import CheckpointError, UsageError
from .params import SamplingParams

NAME = "generation_config.json"
AUTO = "auto"
NONE = "none"

# Names that transformers gives the values which SamplingParams has too, and their types.
SAMPLING = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "max_new_tokens": int,
    "repetition_penalty": float,
    "min_new_tokens": int,
}
# Those that have another name there.
OWN_NAMES = {"min_new_tokens": "min_tokens"}
# Those that change greedy text too.
ALWAYS = ("max_new_tokens", "max_length", "stop", "repetition_penalty", "min_tokens")
# Those that change sampled text only.
SAMPLED_ONLY = ("top_p", "top_k", "min_p", "seed")

# What changes the text and is not supported, with the values that leave the text as it is (None always does).
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "encoder_repetition_penalty": (1.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "num_beams": (0, 1),
    "num_beam_groups": (0, 1),
    "penalty_alpha": (0.0,),
    "dola_layers": (),
    "constraints": ([],),
    "force_words_ids": ([],),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "forced_decoder_ids": ([],),
    "sequence_bias": ([], {}),
    "exponential_decay_length_penalty": (),
    "min_length": (0,),
    "max_time": (),
    "guidance_scale": (1.0,),
    "watermarking_config": ({},),
    "token_healing": (False,),
}

# The same, of what matters to sampled text only.
UNSUPPORTED_SAMPLING: Mapping[str, tuple[Any, ...]] = {
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "top_h": (1.0,),
}


@dataclass(frozen=True)
class GenerationDefaults:
    """Defaults of one model's requests. Without a file: those of SamplingParams."""

    # SamplingParams by the names of their fields, as far as the file has them.
    values: Mapping[str, Any]
    # Most tokens of prompt and reply together; None: the file says nothing, or how many new tokens there may be.
    max_length: int | None = None
    # What is asked for and not supported, for any text and for sampled text only: such as "num_beams 4".
    unsupported: tuple[str, ...] = ()
    unsupported_sampling: tuple[str, ...] = ()
    # End marks that the model cannot write, each a sentence.
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, content: Mapping[str, Any], path: Path) -> GenerationDefaults:
        """The defaults in `content`, the JSON object of the file `path`. CheckpointError for values that make no sense."""
        values = {name: _number(content, name, kind, path) for name, kind in SAMPLING.items()}
        values = {OWN_NAMES.get(name, name): value for name, value in values.items() if value is not None}
        # Without `do_sample`, transformers takes the likeliest token, whatever the temperature.
        sampled = _switch(content, "do_sample", path)
        values["temperature"] = values.get("temperature", 1.0) if sampled else 0.0
        values["top_k"] = max(values.get("top_k", 0), 0)
        values["stop"] = _texts(content, "stop_strings", path)
        max_length = _number(content, "max_length", int, path)
        if max_length is not None and max_length < 1:
            raise CheckpointError(f"{path}: max_length must be 1 or more, got {max_length}. {_hint()}")
        try:
            SamplingParams(**values)
        except UsageError as error:
            raise CheckpointError(f"{path}: {str(error).rstrip('.')}. {_hint()}") from None
        said = {name: value for name, value in values.items() if name in content or value != getattr(SamplingParams(), name)}
        return cls(
            said,
            None if "max_new_tokens" in said else max_length,
            _asked(content, UNSUPPORTED),
            _asked(content, UNSUPPORTED_SAMPLING),
        )

    def resolved(self, params: SamplingParams, prompt_tokens: int) -> SamplingParams:
        """`params` with every value given: its own, else the file's, else the usual one; a sampled text has a seed.

        Raises UsageError where the file's max_length leaves no token after a prompt of `prompt_tokens`."""
        values = {name: value for name, value in self.values.items() if not params.gives(name)}
        if self.max_length is not None and not params.gives("max_new_tokens"):
            if prompt_tokens >= self.max_length:
                raise UsageError(
                    f"The prompt has {prompt_tokens} tokens, and {NAME} ends a text at {self.max_length} (max_length): "
                    "give --max-new-tokens."
                )
            values["max_new_tokens"] = self.max_length - prompt_tokens
        chosen = replace(params, **values)
        if chosen.temperature > 0 and not chosen.gives("seed"):
            chosen = replace(chosen, seed=secrets.randbelow(2**31))
        return chosen

    def lines(self, params: SamplingParams) -> list[str]:
        """What a user should know about a request with `params`: the values that come from the file, and what it asks in vain."""
        sampled = (params.temperature if params.gives("temperature") else self.values.get("temperature", 0.0)) > 0
        used = {name: value for name, value in self.values.items() if not params.gives(name)}
        if self.max_length is not None and not params.gives("max_new_tokens"):
            used["max_length"] = self.max_length
        if not sampled:
            used = {name: used[name] for name in ALWAYS if name in used}
        asked = (*self.unsupported, *(self.unsupported_sampling if sampled else ()))
        found = []
        if used:
            shown = ", ".join(f"{name} {_shown(value)}" for name, value in used.items())
            found.append(f"From {NAME}: {shown} (--generation-config none: not).")
        if asked:
            found.append(f"{NAME} asks for {', '.join(asked)}: not supported, the text is the one without.")
        idle = [] if sampled else [f"{name} {getattr(params, name)}" for name in SAMPLED_ONLY if params.gives(name)]
        if idle:
            found.append(f"{', '.join(idle)}: without effect, the text is greedy (a temperature above 0 draws tokens).")
        return [*found, *self.notes]

    @property
    def warnings(self) -> list[str]:
        """What holds for every request: what is asked for in vain."""
        return replace(self, values={}, max_length=None).lines(SamplingParams())


def read(path: Path) -> dict[str, Any]:
    """The JSON object in the file `path`, empty where there is no such file. CheckpointError where it cannot be read."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}). {_hint()}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}). {_hint()}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} should hold a JSON object. {_hint()}")
    return content


def locate(choice: str | Path, model: Path) -> Path:
    """The file that the option generation_config names for the model in the directory `model`. UsageError where there is none."""
    if str(choice) in (AUTO, NONE):
        return model / NAME
    place = Path(choice).expanduser()
    file = place / NAME if place.is_dir() else place
    if not file.is_file():
        raise UsageError(f"There is no {file}: --generation-config takes auto, none, or the directory of a {NAME}.")
    return file


def defaults_of(choice: str | Path, model: Path) -> GenerationDefaults:
    """The defaults that the option generation_config chooses for the model in the directory `model`."""
    file = locate(choice, model)
    if str(choice) == NONE or not file.exists():
        return GenerationDefaults({})
    return GenerationDefaults.of(read(file), file)


def end_marks(value: Any, where: str, vocabulary: int) -> tuple[set[int], list[str]]:
    """The token ids that an eos_token_id names, and one sentence for each that the model cannot write.

    CheckpointError where it is neither None, a token id nor a list of those."""
    listed = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    for token in listed:
        if not isinstance(token, int) or isinstance(token, bool):
            raise CheckpointError(f"{where}: eos_token_id must be a token id or a list of those, got {value!r}. {_hint()}")
    outside = [token for token in listed if not 0 <= token < vocabulary]
    said = f"which is not in the vocabulary of {vocabulary}: no text ends with it."
    return set(listed) - set(outside), [f"{where} names the end mark {token}, {said}" for token in outside]


def _hint() -> str:
    return "Mend it, or get it again."


def _number(content: Mapping[str, Any], name: str, kind: type, path: Path) -> Any:
    """The number `name`, None where it is missing. A float that is a whole number may stand for one."""
    value = content.get(name)
    if value is None:
        return None
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not good or (kind is int and value != int(value)):
        wanted = "a whole number" if kind is int else "a number"
        raise CheckpointError(f"{path}: {name} must be {wanted}, got {value!r}. {_hint()}")
    return kind(value)


def _switch(content: Mapping[str, Any], name: str, path: Path) -> bool:
    value = content.get(name)
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"{path}: {name} must be true or false, got {value!r}. {_hint()}")
    return bool(value)


def _texts(content: Mapping[str, Any], name: str, path: Path) -> tuple[str, ...]:
    value = content.get(name)
    texts = () if value is None else (value,) if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise CheckpointError(f"{path}: {name} must be a text or a list of texts, got {value!r}. {_hint()}")
    return tuple(texts)


def _asked(content: Mapping[str, Any], table: Mapping[str, tuple[Any, ...]]) -> tuple[str, ...]:
    """What `content` asks for of the names in `table`, with its value where that is short."""
    asked = {name: content[name] for name, off in table.items() if content.get(name) is not None and content[name] not in off}
    return tuple(f"{name} {_shown(value)}" if isinstance(value, (int, float, str)) else name for name, value in asked.items())


def _shown(value: Any) -> str:
    return ", ".join(map(repr, value)) if isinstance(value, tuple) else str(value)

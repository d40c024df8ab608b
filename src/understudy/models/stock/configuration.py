"""The small files beside a model's weights: its configuration, its tokenizer, the tokens that end a text."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, quoted
from ...generation_config import end_marks, read
from ...weights.checkpoint import read_object
from ...weights.formats import refuse_pointer
from .config_values import check_kind, check_sizes
from .hf import refused
from .refusals import refuse_unsupported
from .ropes import check_ropes
from .shape import ModelShape
from .wrapper import is_wrapper, refuse_silent, text_config, that_writes

# Some file of a tokenizer that transformers can read has such a name.
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "tekken.json")

# The packages with which transformers reads a file of sentencepiece.
SENTENCEPIECE = ("sentencepiece", "protobuf")

TEMPLATE = "chat_template.json"


def config_of(directory: Path) -> Any:
    """The transformers config in `directory`. CheckpointError for kinds that are unknown or unsupported, before any work."""
    from transformers import AutoConfig

    place = directory / "config.json"
    content = read_object(place)
    check_kind(content, place)
    check_sizes(content, place)
    with refused(f"{place} cannot be used", content):
        config = that_writes(AutoConfig.from_pretrained(directory, trust_remote_code=False))
        text = text_config(config)
        values = {**text.to_dict(), "layer_types": getattr(text, "layer_types", None)}
        refuse_unsupported(*((values,) if text is config else (config.to_dict(), values)))
        refuse_silent(config)
        check_ropes(config, place)
        # The model is that of the weights as they are read, which is built as any other.
        for one in (config, text):
            vars(one).pop("quantization_config", None)
        # raises what else its layers cannot have
        ModelShape.of(config)
    return config


def tokenizer_of(directory: Path, vocabulary: int | None = None) -> Any:
    """The transformers tokenizer in `directory`, for a model of `vocabulary` tokens where that is given.

    Raises CheckpointError where there is none that can be used.

    Some classes keep, as Python objects, the vocabulary and merges they were built from: 500 bytes a token beside the 300 that
    the tokenizer itself takes (docs/log.md). They are given back."""
    from transformers import AutoTokenizer

    what = f"{directory} has no usable tokenizer"
    files = [file for pattern in TOKENIZER_FILES for file in directory.glob(pattern)]
    for file in files:
        refuse_pointer(file)
    if not files:
        raise CheckpointError(f"{what}: it holds no tokenizer files. Get them too, tokenizer.json first of all.")
    try:
        with quoted(CheckpointError, what, "Get its tokenizer files again."):
            # Left open, transformers asks on the terminal whether to run code that comes with the model.
            tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except CheckpointError:
        _refuse_unread(what, files)
        raise
    if not getattr(tokenizer, "is_fast", False):
        raise CheckpointError(f"{what}: {type(tokenizer).__name__} runs in Python only. Convert it to a tokenizer.json.")
    with quoted(CheckpointError, what, "Get its tokenizer files again."):
        tokenizer.decode(tokenizer("")["input_ids"], skip_special_tokens=True)
    backend: Any = tokenizer._tokenizer
    size = backend.get_vocab_size(with_added_tokens=False)
    if vocabulary is not None and size > vocabulary:
        raise CheckpointError(f"{what}: it knows {size} tokens, and the model {vocabulary}. Get both from one source.")
    # Where the template belongs to a processor, which also takes images, older checkpoints keep it in a file of its own.
    if not getattr(tokenizer, "chat_template", None) and (directory / TEMPLATE).is_file():
        tokenizer.chat_template = read_object(directory / TEMPLATE).get("chat_template")
    for name in ("_vocab", "_merges"):
        vars(tokenizer).pop(name, None)
    return tokenizer


def _refuse_unread(what: str, files: Sequence[Path]) -> None:
    """Raise CheckpointError, beginning with `what`, where a tokenizer's only file is one of sentencepiece, and what reads those is
    not installed: transformers takes the file for another kind then, and asks for other packages."""
    model = next((file.name for file in files if file.suffix == ".model"), None)
    lacking = [package for package in SENTENCEPIECE if not _installed(package)]
    if model and lacking and not any(file.name == "tokenizer.json" for file in files):
        needs = f"{model} alone can be read with {' and '.join(lacking)} only"
        raise CheckpointError(f"{what}: {needs}. Get its tokenizer.json, or `pip install {' '.join(lacking)}`.") from None


def _installed(package: str) -> bool:
    with suppress(PackageNotFoundError):
        return bool(version(package))
    return False


def stop_ids(generation: Path, config: Any, tokenizer: Any, vocabulary: int) -> tuple[frozenset[int], list[str]]:
    """Every token that ends a text, by the generation config in the file `generation`, the config and the text model's in it, and
    the tokenizer; and one sentence for each such token that a model of `vocabulary` tokens cannot write."""
    places = {
        str(generation): read(generation).get("eos_token_id"),
        "config.json": getattr(config, "eos_token_id", None),
        "The tokenizer": getattr(tokenizer, "eos_token_id", None),
    }
    if is_wrapper(config):
        places["The text model's config"] = getattr(text_config(config), "eos_token_id", None)
    found: set[int] = set()
    notes: list[str] = []
    for where, value in places.items():
        inside, outside = end_marks(value, where, vocabulary)
        found |= inside
        notes += outside
    return frozenset(found), notes

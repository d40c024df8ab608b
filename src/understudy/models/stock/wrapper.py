"""The text model inside a multimodal one: its config, and the class of transformers cut down to language model and head.

The class that transformers has for the whole checkpoint does to its logits what it always does (caps, scales); only what stands
between it and its language model is gone: towers, projectors, and the code that puts images in the place of tokens."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from ...errors import CheckpointError
from .towers import left_out

# Parts of a config that make its model a multimodal one.
PARTS = ("vision_config", "audio_config", "text_config", "speech_config", "audio_encoder_config")
# How the names of parts begin that blocks of a text model have for images alone.
FOR_IMAGES = "vision_"
# Values of a text model that some wrappers repeat.
REPEATED = ("vocab_size", "hidden_size", "pad_token_id", "bos_token_id", "eos_token_id")


def text_config(config: Any) -> Any:
    """The config of the text model that a transformers `config` describes: `config` itself, unless it is a wrapper's.

    Sizes, layers, ropes and special tokens are asked of it. What the whole model is asked for (how it is built, whether its head
    is tied) is the wrapper's."""
    return config.get_text_config(decoder=True)


def that_writes(config: Any) -> Any:
    """The part of a transformers `config` whose model writes text, where that is a multimodal model by itself and others only speak
    what it writes (the thinker of Qwen's Omni models); `config` itself for all others."""
    own = text_config(config)
    if own is config or any(getattr(config, name, None) is own for name in config.sub_configs):
        return config
    inside = (getattr(config, name, None) for name in config.sub_configs)
    found = next((part for part in inside if part is not None and text_config(part) is own), config)
    # which may stand at the whole alone
    found.dtype = found.dtype or config.dtype
    return found


def is_wrapper(config: Any) -> bool:
    """Is the text model that `config` describes one part of a multimodal model?"""
    return text_config(config) is not config


def readable(config: Any) -> int:
    """How many of its tokens, from the first on, the text model that `config` describes reads by itself: some wrappers look up the
    further ones, which stand for images and sounds, in tables of their own."""
    own = text_config(config)
    others = (getattr(config, name, None) for name in config.sub_configs)
    offsets = (getattr(part, "vocab_offset", None) for part in others if part is not own)
    return min([int(own.vocab_size), *(offset for offset in offsets if isinstance(offset, int))])


def for_text(config: Any, attention: str) -> str | dict[str, str]:
    """What transformers is told so that the text model of `config` attends by the implementation `attention`. A wrapper's towers
    keep theirs: some take only those that they know, and all are cut off."""
    own = text_config(config)
    parts = [name for name in config.sub_configs if getattr(config, name, None) is own]
    return dict.fromkeys(["", *parts], attention) if parts else attention


def with_text(config: Any, text: Any) -> Any:
    """A copy of the wrapper's `config` with the text model `text`, also where it repeats values of that."""
    own = text_config(config)
    changed = copy.copy(config)
    for name in config.sub_configs:
        if getattr(config, name, None) is own:
            setattr(changed, name, text)
            for repeated in REPEATED:
                if getattr(config, repeated, None) == (known := getattr(own, repeated, None)) and known is not None:
                    setattr(changed, repeated, getattr(text, repeated))
            return changed
    raise CheckpointError(
        f"The text config of a {config.model_type!r} model is in no part of its own; not supported yet."
    )


def switches(config: Any) -> dict[str, Any]:
    """The values of `config` that may change what its text model computes: those of other parts are left out."""
    values: dict[str, Any] = config.to_dict()
    if not is_wrapper(config):
        return values
    own = text_config(config)
    return {
        name: value for name, value in values.items() if name not in config.sub_configs or getattr(config, name) is own
    }


def built(config: Any, **options: Any) -> nn.Module:
    """The model that transformers has for `config`, that of the whole checkpoint for a wrapper's, but for what another library has.

    Raises CheckpointError for a kind that has no class which writes text, and what transformers raises."""
    kind = _class_for(config)
    with left_out() if is_wrapper(config) else nullcontext():
        model: nn.Module = kind.from_config(copy.deepcopy(config), trust_remote_code=False, **options)
    _name_headless(model)
    return model


def _name_headless(model: Any) -> None:
    """Let the stock `model` tell where its head and its headless part are, if its class does not: the head may be that of a whole
    language model in it, and the headless part is the largest one which has its embedding and not its head."""
    inner: Any = getattr(model, "language_model", None)
    if model.get_output_embeddings() is None and hasattr(inner, "get_output_embeddings"):
        model.get_output_embeddings = inner.get_output_embeddings
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or isinstance(getattr(model, str(model.base_model_prefix), None), nn.Module):
        return
    inside = {path: set(part.modules()) for path, part in model.named_modules() if path and part is not table}
    path = next((path for path, parts in inside.items() if table in parts and head not in parts), None)
    if path is not None:
        model.base_model_prefix = path
        model.get_decoder = partial(model.get_submodule, path)


def refuse_silent(config: Any) -> None:
    """Raise CheckpointError for a transformers `config` of a kind that has no class which writes text."""
    _class_for(config)


def _class_for(config: Any) -> Any:
    """The class of transformers that finds the class of a model with this `config`."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM

    kinds = (AutoModelForMultimodalLM, AutoModelForImageTextToText) if is_wrapper(config) else (AutoModelForCausalLM,)
    for kind in kinds:
        # the table that from_config looks in; there is no other way to ask
        if type(config) in kind._model_mapping:
            return kind
    raise CheckpointError(
        f"transformers has no class that writes text for a {config.model_type!r} model: give a model that has a language model."
    )


@dataclass(frozen=True)
class OtherParts:
    """What a wrapper's class has beside its language model and head, and how checkpoints name all of it."""

    # Paths of the modules, parameters and buffers that were cut off.
    paths: tuple[str, ...]
    # transformers' changes of a checkpoint's names, in the order in which they are made.
    changes: tuple[Any, ...]


class Hidden:
    """What a wrapper's headless model returns: the last hidden states, and nothing of any other part."""

    def __init__(self, states: Tensor) -> None:
        self.last_hidden_state = states

    def __getitem__(self, index: int) -> Tensor:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def text_parts(model: Any) -> tuple[nn.Module, ...]:
    """The language model of the stock multimodal `model`, its embedding and its head.

    Raises CheckpointError for a class that keeps them in another way than in a headless model, and beside it."""
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    base = dict(model.named_modules()).get(str(model.base_model_prefix))
    if head is None or base is None or base is model or decoder not in set(base.modules()):
        raise CheckpointError(f"{type(model).__name__} does not keep its language model and its head apart; not supported yet.")
    return decoder, model.get_input_embeddings(), head


def cut_to_text(model: Any) -> None:
    """Cut everything off the stock multimodal `model` but its language model, its embedding and its head.

    Raises CheckpointError for a class that keeps them in another way."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    kept = set(text_parts(model))
    changes = tuple(get_model_conversion_mapping(model))
    model.understudy_parts = OtherParts((*_cut(model, "", kept), *_cut_within(model)), changes)


def _cut(module: nn.Module, path: str, kept: set[nn.Module]) -> Iterator[str]:
    """Cut off what holds nothing of `kept`, and name it."""
    for name in [*module._parameters, *module._buffers]:
        setattr(module, name, None)
        yield path + name
    for name, child in list(module.named_children()):
        if child in kept:
            continue
        if kept.isdisjoint(child.modules()):
            setattr(module, name, None)
            yield path + name
        else:
            yield from _cut(child, f"{path}{name}.", kept)


def _cut_within(model: Any) -> Iterator[str]:
    """Cut off what blocks of the language model have for images alone (experts, say), and name it."""
    for path, module in list(model.named_modules()):
        for name in [name for name, _ in module.named_children() if name.startswith(FOR_IMAGES)]:
            setattr(module, name, None)
            yield f"{path}.{name}"


def straight_to_text(model: Any) -> None:
    """Let the headless part of a cut `model` hand its input to its language model, with none of the code for other inputs."""
    decoder = model.get_decoder()

    def forward(
        input_ids: Tensor | None = None, position_ids: Tensor | None = None, past_key_values: Any = None, use_cache: Any = None,
        **_: Any,
    ) -> Hidden:  # fmt: skip
        done = decoder(
            input_ids=input_ids, position_ids=position_ids, past_key_values=past_key_values, use_cache=use_cache
        )
        return Hidden(done.last_hidden_state)

    # Where it has no such code, the headless part is the language model.
    if (base := model.get_submodule(str(model.base_model_prefix))) is not decoder:
        base.forward = forward


def parts_in(config: Mapping[str, Any]) -> list[str]:
    """Names of the parts that make the model of a config.json a multimodal one."""
    return [name for name in PARTS if config.get(name)]

"""EAGLE-3 as its authors, SpecForge and NVIDIA publish it: `midlayer`, `fc`, `norm`, `lm_head`, and `d2t` and `t2d` for its smaller
vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import CheckpointError
from ...models.taps import MIDDLE
from .. import HeadConfig, TargetFacts
from . import ADVICE, HeadContent, HeadFormat, Tensors, count, layer_of, renamed, section, token_map, with_output_biases

# What the layers 2, N // 2 and N - 3 of N are given, where nothing else is said.
DEFAULT_TAPS = (2, MIDDLE, -4)
# Options of the head that its config may set.
OPTIONS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
# The target's own, copied for training, and what `token_map` is made of.
DROPPED = ("embed_tokens.weight", "d2t", "t2d")


class PublishedEagle3(HeadFormat):
    """One head of SafeAILab/EAGLE, or of SpecForge."""

    def fits(self, config: Mapping[str, Any], tensors: Tensors) -> bool:
        return "midlayer.self_attn.q_proj.weight" in tensors and "fc.weight" in tensors

    def translate(self, config: Mapping[str, Any], tensors: Tensors) -> HeadContent:
        told = {**config, **section(config, "eagle_config")} if "eagle_config" in config else config
        numbers = layer_numbers(told)
        # Where the first is 1 they are layers whose output is read: what layer k gives is tap k + 1. Else they are layers whose
        # input is read: what layer k is given is tap k.
        taps = tuple(number + 1 for number in numbers) if numbers[:1] == (1,) else numbers
        return eagle3(told, told, tensors, taps or DEFAULT_TAPS, {"midlayer.": "layers.0."})


def layer_numbers(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The layers of the target, counted from 0, of which a config says that the head reads them; none where it does not say."""
    name = "eagle_aux_hidden_state_layer_ids"
    numbers = config.get(name)
    if numbers is None:
        return ()
    if not isinstance(numbers, list) or not numbers or not all(type(number) is int and number >= 0 for number in numbers):
        raise CheckpointError(f"The head's config has {numbers!r} for {name}, which should be numbers of layers. {ADVICE}")
    return tuple(numbers)


def eagle3(
    config: Mapping[str, Any], layer: Mapping[str, Any], tensors: Tensors, taps: tuple[int, ...], names: Mapping[str, str],
    architecture: str = "",
) -> HeadContent:  # fmt: skip
    """The EAGLE-3 head of a config, and of the config of its layers, that reads `taps`. `names` are how its tensors' names change.

    Raises CheckpointError where it is not supported."""
    size, vocabulary = count(layer, "hidden_size"), count(layer, "vocab_size")
    if config.get("target_hidden_size") not in (None, size):
        raise CheckpointError(
            f"The head reads hidden states of {config['target_hidden_size']} numbers and has {size} itself; this is not supported."
        )
    fc = tensors["fc.weight"]
    if fc.shape[1] != len(taps) * size:
        reads = f"reads {fc.shape[1]} numbers, where {len(taps)} hidden states have {len(taps) * size}"
        raise CheckpointError(f"The head's 'fc.weight' {reads}. {ADVICE}")
    says = count(config, "draft_vocab_size", len(tensors["d2t"]) if "d2t" in tensors else vocabulary)
    options = {name: True for name in OPTIONS if config.get(name)} | ({"bias": True} if "fc.bias" in tensors else {})
    changes = {"lm_head.": "output.", "input_norm.": "joined_norm.", "fc_norm.": "tap_norms.", **names}
    found = with_output_biases(renamed(tensors, changes, DROPPED))
    found["token_map"] = token_map(tensors, says, vocabulary)
    head = HeadConfig(
        "eagle3", TargetFacts(size, vocabulary, architecture=architecture), taps, says,
        layers=count(layer, "num_hidden_layers"), layer=layer_of(layer, found), options=options,
    )  # fmt: skip
    return HeadContent(head, found)

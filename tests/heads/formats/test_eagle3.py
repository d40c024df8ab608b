"""EAGLE-3 as SafeAILab and SpecForge publish it: golden values of what was read, its vocabulary, and which states it reads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tests.heads.formats.publish import LLAMA, assert_same, named, publish
from tests.heads.golden import FACTS, HIDDEN, LAYER, VOCABULARY, assert_golden, randomized
from tests.heads.test_eagle3 import reference
from understudy.errors import CheckpointError
from understudy.heads import DraftHead, HeadConfig
from understudy.heads.eagle3 import Eagle3
from understudy.heads.files import config_of, load
from understudy.heads.formats.eagle3 import DEFAULT_TAPS
from understudy.heads.held import Holding
from understudy.models.taps import places_of

SAYS = 12
TOKENS = torch.tensor([0, 1, 2, 4, 8, 9, 15, 22, 23, 30, 38, 39])
# Our names for what published files call by the keys.
NAMES = {
    "midlayer.": "layers.0.", "lm_head.": "output.", "fc_norm.": "tap_norms.", "input_norm.": "joined_norm.",
}  # fmt: skip
CONFIG = LLAMA | {"architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": SAYS}


def made(options: dict[str, Any] | None = None, taps: tuple[int, ...] = DEFAULT_TAPS) -> DraftHead:
    head = randomized(Eagle3(HeadConfig("eagle3", FACTS, taps, SAYS, layers=1, layer=LAYER, options=options or {})))
    assert head.token_map is not None
    head.token_map.copy_(TOKENS)
    return head


def tensors_of(head: DraftHead) -> dict[str, Tensor]:
    tensors = named(head, NAMES)
    tokens = tensors.pop("token_map")
    marked = torch.zeros(VOCABULARY, dtype=torch.bool)
    marked[tokens] = True
    return tensors | {"d2t": tokens - torch.arange(SAYS), "t2d": marked}


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_published_head_is_read(file: str, tmp_path: Path) -> None:
    head = made()
    again = assert_same(publish(tmp_path / "head", CONFIG, tensors_of(head), file), head)
    assert_golden(again, lambda *given: reference(head, *given), depth=2)
    assert again.token_map is not None and again.token_map.tolist() == TOKENS.tolist()


@pytest.mark.parametrize("options", [{"fc_norm": True, "norm_output": True}, {"norm_before_fc": True}])
def test_newer_options_are_read(options: dict[str, Any], tmp_path: Path) -> None:
    head = made(options)
    again = assert_same(publish(tmp_path / "head", CONFIG | options, tensors_of(head)), head)
    assert again.config.options == options
    publish(tmp_path / "nested", CONFIG | {"eagle_config": options}, tensors_of(head))
    assert_same(tmp_path / "nested", head)


def test_a_whole_vocabulary_needs_no_map(tmp_path: Path) -> None:
    head = made()
    tensors = {name: tensor for name, tensor in tensors_of(head).items() if name not in ("d2t", "t2d")}
    whole = torch.randn(VOCABULARY, HIDDEN)
    path = publish(tmp_path / "head", CONFIG | {"draft_vocab_size": VOCABULARY}, tensors | {"lm_head.weight": whole})
    again = load(path, Holding(torch.float32))
    assert again.token_map is not None and again.token_map.tolist() == list(range(VOCABULARY))
    untold = {name: entry for name, entry in CONFIG.items() if name != "draft_vocab_size"}
    assert load(publish(tmp_path / "untold", untold, tensors_of(head)), Holding(torch.float32)).config.draft_vocab_size == SAYS
    publish(path, CONFIG, tensors)
    with pytest.raises(CheckpointError, match=f"says {SAYS} of {VOCABULARY} tokens, and lacks the tensor 'd2t'"):
        load(path, Holding(torch.float32))


def target_states(layers: int) -> tuple[tuple[Tensor, ...], list[Tensor], list[Tensor]]:
    """transformers' list of hidden states of a small model of so many layers, and what each of its layers is given and gives."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**(LLAMA | {"num_hidden_layers": layers}))).eval()
    given: list[Tensor] = []
    gives: list[Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda module, args: given.append(args[0]))
        layer.register_forward_hook(lambda module, args, output: gives.append(output))
    with torch.no_grad():
        hidden = model(torch.arange(9)[None], output_hidden_states=True).hidden_states
    return hidden, given, gives


@pytest.mark.parametrize("layers", [7, 8])
def test_layers_are_counted_as_their_publishers_do(layers: int, tmp_path: Path) -> None:
    """SafeAILab reads what layers 2, N // 2 and N - 3 are given; SpecForge calls the same states what layers 1, N // 2 - 1 and
    N - 4 give. Taps are places in transformers' list."""
    hidden, given, gives = target_states(layers)
    default = [given[2], given[layers // 2], given[layers - 3]]
    outputs = [1, layers // 2 - 1, layers - 4]
    inputs = [2, layers // 2, layers - 3]
    for told in ({}, {"eagle_config": {"eagle_aux_hidden_state_layer_ids": outputs}}, {"eagle_aux_hidden_state_layer_ids": inputs}):
        taps = config_of(publish(tmp_path / "head", CONFIG | told, tensors_of(made()))).taps
        read = [hidden[place] for place in places_of(taps, layers)]
        assert all(torch.equal(*pair) for pair in zip(read, default, strict=True)), told
    assert all(torch.equal(gives[output], state) for output, state in zip(outputs, default, strict=True))


def test_what_is_not_supported_is_refused(tmp_path: Path) -> None:
    tensors = tensors_of(made())
    moved = tensors["d2t"].clone()
    moved[-1] += 1
    swapped = tensors["d2t"].clone()
    swapped[3] -= 1
    below = tensors["d2t"].clone()
    below[0] = -1
    for config, other, said in (
        ({"target_hidden_size": 32}, {}, "reads hidden states of 32 numbers and has 16 itself"),
        ({"eagle_aux_hidden_state_layer_ids": [1, 2]}, {}, "'fc.weight' reads 48 numbers, where 2 hidden states have 32"),
        ({"eagle_aux_hidden_state_layer_ids": "2, 4"}, {}, "'2, 4' for eagle_aux_hidden_state_layer_ids"),
        ({"eagle_config": 3}, {}, "3 for eagle_config, which should be an object"),
        ({}, {"d2t": moved}, f"says token {VOCABULARY}, which is none of the {VOCABULARY} of its target"),
        ({}, {"d2t": below}, "says token -1, which is none of"),
        ({}, {"d2t": swapped}, "'d2t' and 't2d' contradict each other"),
        ({"draft_vocab_size": 5}, {}, "says 5 tokens, and 'd2t' tells of"),
    ):
        path = publish(tmp_path / "head", CONFIG | config, tensors | other)
        with pytest.raises(CheckpointError, match=said) as refusal:
            load(path, Holding(torch.float32))
        assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)

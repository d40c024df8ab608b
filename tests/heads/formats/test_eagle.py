"""EAGLE as SafeAILab publishes it: read from safetensors and from what torch saved, and golden values of what was read."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.heads.formats.publish import LLAMA, assert_same, named, publish
from tests.heads.golden import FACTS, HIDDEN, LAYER, VOCABULARY, assert_golden, randomized
from tests.heads.test_eagle import reference
from understudy.errors import CheckpointError
from understudy.heads import DraftHead, HeadConfig
from understudy.heads.eagle import Eagle
from understudy.heads.files import load
from understudy.heads.held import Holding


def made(layers: int = 1, bias: bool = True) -> DraftHead:
    return randomized(Eagle(HeadConfig("eagle", FACTS, (-1,), layers=layers, layer=LAYER, options={"bias": bias})))


def tensors_of(head: DraftHead) -> dict[str, Tensor]:
    saved_too = {"embed_tokens.weight": torch.randn(VOCABULARY, HIDDEN), "layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)}
    return named(head, {}) | saved_too


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(("layers", "bias"), [(1, True), (1, False), (3, True)])
def test_a_published_head_is_read(file: str, layers: int, bias: bool, tmp_path: Path) -> None:
    head = made(layers, bias)
    config = LLAMA | {"num_hidden_layers": layers} | ({} if bias else {"bias": False})
    again = assert_same(publish(tmp_path / "head", config, tensors_of(head), file), head)
    assert_golden(again, lambda *given: reference(head, *given), depth=2)
    assert (again.config.target.hidden_size, again.config.target.vocab_size, again.config.target.layers) == (HIDDEN, VOCABULARY, 0)


def test_older_ropes_are_understood(tmp_path: Path) -> None:
    path = publish(tmp_path / "head", LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}}, tensors_of(made()))
    ropes = load(path, Holding(torch.float32)).config.layer["rope_parameters"]
    assert ropes == {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}
    publish(path, LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, tensors_of(made()))
    with pytest.raises(CheckpointError, match="rope_type 'dynamic' is not one of"):
        load(path, Holding(torch.float32))


def test_biases_of_queries_alone_leave_the_output_without(tmp_path: Path) -> None:
    head = made()
    biases = {f"layers.0.self_attn.{name}_proj.bias": torch.randn(size) for name, size in (("q", 24), ("k", 12), ("v", 12))}
    path = publish(tmp_path / "head", LLAMA | {"qkv_bias": True}, tensors_of(head) | biases)
    again = load(path, Holding(torch.float32)).state_dict()
    assert all(torch.equal(again[name], bias) for name, bias in biases.items())
    assert not bool(again["layers.0.self_attn.o_proj.bias"].any())


def test_a_config_that_is_none_is_refused_with_the_directory(tmp_path: Path) -> None:
    for wrong, said in (
        ({"hidden_size": "wide"}, "'wide' for hidden_size"),
        ({"num_hidden_layers": 0}, "0 for num_hidden_layers"),
        ({"vocab_size": None}, "None for vocab_size"),
        ({"rope_scaling": "linear"}, "config cannot be used"),
        ({"num_attention_heads": 3}, "cannot be used: .* not a multiple of the number of attention heads"),
        ({"num_attention_heads": 2}, r"is \[16, 24\], where its config tells of \[16, 12\]"),
        ({"num_hidden_layers": 2}, "lacks the tensor"),
    ):
        path = publish(tmp_path / "head", LLAMA | wrong, tensors_of(made()))
        with pytest.raises(CheckpointError, match=said) as refusal:
            load(path, Holding(torch.float32))
        assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_damaged_file_of_torch_is_refused(tmp_path: Path) -> None:
    path = publish(tmp_path / "head", LLAMA, tensors_of(made()), "pytorch_model.bin")
    whole = (path / "pytorch_model.bin").read_bytes()
    for damaged in (b"", whole[:100], whole[: len(whole) // 2], b"no pickle at all"):
        (path / "pytorch_model.bin").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
            load(path, Holding(torch.float32))


def test_code_in_a_file_of_torch_is_not_run(tmp_path: Path) -> None:
    path = publish(tmp_path / "head", LLAMA, {}, "pytorch_model.bin")
    torch.save({"fc.weight": _Touch(tmp_path / "touched")}, path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(path, Holding(torch.float32))
    assert not (tmp_path / "touched").exists()


class _Touch:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)

"""A stand-in computes what the small model computes, is as large as predicted, and is written whole or not at all."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import standin
from tests.tiny import byte_tokenizer
from understudy import LLM
from understudy.weights.export import export

VOCABULARY = 288


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers with two key heads, each read by two query heads."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=128,
        tie_word_embeddings=request.param,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("small")
    LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def load(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize(("widen", "noise"), [(2, 0.0), (3, 2.0), (4, 2.0)])
def test_same_function(small: Path, tmp_path: Path, widen: int, noise: float) -> None:
    standin.make(small, tmp_path / "wide", standin.Widening(widen, noise, "float32"), shard_bytes=200_000)
    tokens = torch.randint(96, (2, 40), generator=torch.Generator().manual_seed(1))
    exact, wide = load(small), load(tmp_path / "wide")
    with torch.no_grad():
        expected, found = exact(tokens).logits, wide(tokens).logits
    assert (expected - found).abs().max() < 1e-4
    options = {"max_new_tokens": 30, "do_sample": False}
    assert torch.equal(exact.generate(tokens[:1, :8], **options), wide.generate(tokens[:1, :8], **options))


def test_copies_of_a_weight_differ_and_their_noise_cancels(small: Path, tmp_path: Path) -> None:
    standin.make(small, tmp_path / "wide", standin.Widening(4, 3.0, "float32"))
    weight = load(small).get_parameter("model.layers.0.mlp.up_proj.weight").detach()
    wide = load(tmp_path / "wide").get_parameter("model.layers.0.mlp.up_proj.weight").detach()
    copies = wide.reshape(4, *weight.shape[:1], 4, weight.shape[1])  # [output copy, out, input copy, in]
    assert torch.allclose(copies.sum(2), weight.expand(4, -1, -1), atol=1e-5)
    noise = copies - weight[None, :, None, :] / 4
    assert noise.std() == pytest.approx(3 * weight.std().item() / 4, rel=0.05)
    assert (noise[0] - noise[1]).std() > noise.std()


def test_size_on_disk_is_predicted_and_split_in_shards(small: Path, tmp_path: Path) -> None:
    total = standin.make(small, tmp_path / "wide", standin.Widening(3, 1.0), shard_bytes=100_000)
    matrices = 2 * (3 * 3) * (64 * (64 + 32 + 32) + 64 * 64 + 3 * 64 * 96)
    vectors = 5 * 3 * 64
    assert total == 2 * (matrices + vectors + 2 * VOCABULARY * 3 * 64)
    files = sorted((tmp_path / "wide").glob("*.safetensors"))
    assert len(files) > 1
    on_disk = sum(file.stat().st_size for file in files)
    assert total < on_disk <= total + 2 * 4096 * len(files)
    index = json.loads((tmp_path / "wide" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == total
    assert {file.name for file in files} == set(index["weight_map"].values())


def test_same_seed_same_bytes(small: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        standin.make(small, tmp_path / name, standin.Widening(2, 3.0, seed=7))
    one, two = (next((tmp_path / name).glob("*.safetensors")).read_bytes() for name in ("one", "two"))
    assert one == two


def test_says_what_it_is_and_never_overwrites(small: Path, tmp_path: Path) -> None:
    standin.make(small, tmp_path / "wide", standin.Widening(2, 3.0))
    config = json.loads((tmp_path / "wide" / "config.json").read_text())
    assert config["understudy_stand_in"] == {"widen": 2, "noise": 3.0, "seed": 0}
    assert not config["tie_word_embeddings"]
    with pytest.raises(SystemExit, match="exists already"):
        standin.make(small, tmp_path / "wide", standin.Widening(2, 3.0))


def test_other_architectures_are_refused(small: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(SystemExit, match="must be a llama or mistral model"):
        standin.make(tmp_path, tmp_path / "wide", standin.Widening(2, 3.0))
    assert not (tmp_path / "wide").exists()


@pytest.mark.parametrize("codec", ["raw", "delta"])
def test_it_comes_back_from_a_store_byte_for_byte(small: Path, codec: str, tmp_path: Path) -> None:
    standin.make(small, tmp_path / "wide", standin.Widening(4, 3.0), shard_bytes=200_000)
    store = LLM.prepare(tmp_path / "wide", codec=codec, output=tmp_path / "store")
    assert codec in {entry.codec for entry in store.linears.values()}
    store.verify()
    export(store, tmp_path / "back")
    for path in (tmp_path / "wide").iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_device_draws_noise_of_its_own_that_cancels_too() -> None:
    weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(2))
    piece = standin.Piece("up", "up", 2, 4, True, (128, 128))
    asked = standin.Widening(4, 3.0)
    wide = torch.cat(list(standin.widened_there(piece, weight, asked))).view(2, 64, 4, 32)
    assert torch.allclose(wide.sum(2), weight.expand(2, -1, -1), atol=1e-4)
    assert (wide - weight[None, :, None] / 4).std() == pytest.approx(3 * weight.std().item() / 4, rel=0.05)
    assert torch.equal(wide.view(128, 128), torch.cat(list(standin.widened_there(piece, weight, asked))))
    other = torch.cat(list(standin.widened_there(piece, weight, standin.Widening(4, 3.0, seed=1))))
    assert not torch.equal(wide.view(128, 128), other)

"""Compressed keys: entries as the stock modules make them, whatever tree or chunk a node is in."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig

from tests.quantised import publish_deepseek_v4
from tests.tiny import generated, opened, save, stock, values_of
from understudy import SamplingParams
from understudy.compression import CompressedShape
from understudy.devices import DEVICES
from understudy.errors import CheckpointError, UsageError
from understudy.kernels.chosen_keys import IndexQuery
from understudy.models.proving import proof
from understudy.models.stock import compressors, structure
from understudy.models.stock.shape import ModelShape
from understudy.models.streamed import CurrentPass, attention_name
from understudy.weights.checkpoint import Checkpoint

FAMILY = "deepseek_v4"
PROMPT = [(i * i + i // 3) % 90 + 1 for i in range(60)]
LONG = [(i * i * 7 + i // 3) % 251 for i in range(760)]


def config_of(**changes: Any) -> Any:
    return AutoConfig.for_model(**values_of(FAMILY, **changes))


class Pass:
    """Notes what it is handed and asked."""

    def __init__(self) -> None:
        self.handed: dict[bool, tuple[Tensor, Any]] = {}

    def compress(self, layer: int, parts: Tensor, make: Any, *, of_index: bool) -> None:
        self.layer = layer
        self.handed[of_index] = parts, make

    def choose_entries(self, layer: int, asked: IndexQuery) -> None:
        self.asked = asked


def test_layers_say_how_they_compress() -> None:
    config = config_of()
    model = structure.skeleton(config, torch.float32, attention_name())
    shapes = ModelShape.of(config).layers
    long, short = CompressedShape(7), CompressedShape(4, overlaps=True, index_size=16)
    assert [shape.compressed for shape in shapes] == [long, None, short, long]
    assert {(shape.window, shape.latent, shape.kv_heads, shape.index_size) for shape in shapes} == {(12, True, 1, 0)}
    assert (long.looks_back, short.looks_back, long.parts(32), short.parts(32)) == (7, 8, 64, 128)
    structure.check_structure(model)


@pytest.mark.parametrize("layer", [0, 2])
def test_an_entry_is_what_the_stock_module_makes_of_its_block(layer: int) -> None:
    """Blocks of a text one after another, the first of which has none before it, and those of the index."""
    model = stock(FAMILY)
    own: Any = model.model.layers[layer].self_attn.compressor
    hidden, asked, count = torch.randn(1, 30, 64), torch.randn(1, 30, 48), 30
    positions = torch.arange(count)[None]
    index: Any = getattr(own, "indexer", None)
    noted: list[Tensor] = []
    if index is not None:
        index.scorer.register_forward_hook(lambda _, given, __: noted.extend(given))
    with torch.no_grad():
        expected = {False: own(hidden, asked, positions, None, layer)[0][0, 0]}
    if index is not None:
        expected[True] = noted[1][0]
    compressors.install_compressors(model)
    under_way = Pass()
    for module in (own, index):
        if module is not None:
            module.understudy = CurrentPass()
            module.understudy.under_way = under_way
    with torch.no_grad():
        given, mask = own(hidden, asked, positions, None, layer)
    assert given.shape == (1, 1, 0, 32) and mask is None and under_way.layer == layer
    assert under_way.handed.keys() == expected.keys()
    for of_index, (parts, make) in under_way.handed.items():
        rate, back = own.compress_rate, (own if index is None else index).compress_rate * (1 if index is None else 2)
        for number in range(count // rate):
            end = (number + 1) * rate
            rows = parts[torch.arange(end - back, end).clamp(min=0)]
            with torch.no_grad():
                assert torch.allclose(make(rows, number), expected[of_index][number], atol=1e-5)
        assert len(expected[of_index]) == count // rate
    if index is not None:
        assert torch.allclose(under_way.asked.queries, noted[0][0], atol=1e-5) and under_way.asked.most == 5
        assert under_way.asked.weights is not None and under_way.asked.weights.shape == (30, 32)


def test_a_module_that_compresses_otherwise_is_refused() -> None:
    for change, says in (("compress_rate", "compresses keys as"), ("q_b_proj", "in a way that is not supported")):
        model = stock(FAMILY)
        own: Any = model.model.layers[2].self_attn.compressor
        if change == "compress_rate":
            own.compress_rate = own.indexer.compress_rate = 5
        else:
            del own.indexer.q_b_proj
        with pytest.raises(CheckpointError, match=says):
            compressors.install_compressors(model)


@pytest.mark.parametrize("what", ["entries", "turn", "choice"])
def test_a_proof_sees_what_is_computed_otherwise(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, make, query = config_of(), compressors.entry_of, compressors.IndexQuery
    if what == "entries":
        assert proof.fault(config) is None
        monkeypatch.setattr(compressors, "entry_of", lambda module, parts, number: make(module, parts.flip(0), number))
    elif what == "turn":
        monkeypatch.setattr(compressors, "entry_of", lambda module, parts, number: make(module, parts, number + 1))
    else:
        monkeypatch.setattr(compressors, "IndexQuery", lambda q, w, s, most: query(q, w, s, most - 1))
    assert "gives other logits" in str(proof.fault(config))


def test_long_texts_are_those_of_transformers(tmp_path: Path) -> None:
    """Beyond what is held of tokens as they are."""
    model = save(tmp_path, FAMILY, max_position_embeddings=2048)
    with opened(tmp_path, context=1216) as llm:
        assert [state.held for state in llm.model.cache.layers] == [640] * 4
        done = llm.generate(LONG, SamplingParams(max_new_tokens=100, ignore_eos=True))[0]
    assert done.token_ids == generated(model, LONG, 100) and done.stats.accepted > 0 and done.stats.bytes_streamed > 0


@pytest.mark.parametrize("prompts", ["short", "long"])
def test_texts_are_the_same_in_every_way(prompts: str, tmp_path: Path) -> None:
    """Far beyond what a layer looks at, alone and side by side, after a prefix that is copied, drafted or not."""
    save(tmp_path, FAMILY, torch.bfloat16, max_position_embeddings=2048)
    texts = [PROMPT, [*PROMPT[:50], 7, 8, 9], PROMPT[20:]]
    if prompts == "long":
        texts = [LONG, [*LONG[:700], 7, 8, 9], LONG[300:]]
    found = []
    for temperature in (0.0, 0.7):
        params = SamplingParams(max_new_tokens=40, ignore_eos=True, temperature=temperature, seed=5)
        for options in ({"method": "none"}, {}, {"rows": 3}):
            with opened(tmp_path, context=1216 if prompts == "long" else 256, **options) as llm:
                done = llm.generate(texts, params)
            found.append([text.token_ids for text in done])
            assert options == {"method": "none"} or min(text.stats.accepted for text in done) > 0
            assert min(text.stats.bytes_streamed for text in done) > 0
            assert "rows" in options or sum(text.stats.cached_tokens for text in done) >= 40
        assert found[-1] == found[-2] == found[-3] and len({token for text in found[-1] for token in text}) > 8


def test_a_text_goes_on_from_what_is_on_disk(tmp_path: Path) -> None:
    """The window, what entries are made of, and entries before: of a text that is read again, and of one that parts from it."""
    save(tmp_path / "model", FAMILY, torch.bfloat16, max_position_embeddings=2048)
    params = SamplingParams(max_new_tokens=30, ignore_eos=True, temperature=0.7, seed=5)
    found = []
    for options in ({"method": "none"}, {"prefix_cache": tmp_path / "prefixes"}, {"prefix_cache": tmp_path / "prefixes"}):
        with opened(tmp_path / "model", context=1216, **options) as llm:
            done = llm.generate([LONG, [*LONG[:700], 7, 8, 9]], params)
        found.append([text.token_ids for text in done])
    assert found[0] == found[1] == found[2] and len(set(found[0][1])) > 4
    assert [text.stats.cached_tokens for text in done] == [704, 640] and min(text.stats.accepted for text in done) > 0


def test_published_names_are_those_of_the_model(tmp_path: Path) -> None:
    """Without a prefix; the layer that predicts further tokens is left aside."""
    publish_deepseek_v4(tmp_path)
    tensors = {name.removeprefix("model."): tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    tensors["embed.weight"] = tensors.pop("embed_tokens.weight")
    tensors |= {name.replace(".hc_", "_"): tensors.pop(name) for name in list(tensors) if name.startswith("hc_head.")}
    assert {"head.weight", "norm.weight", "hc_head_fn", "layers.2.attn.indexer.compressor.wkv.weight"} <= tensors.keys()
    last = [name for name in tensors if name.startswith("layers.3.")]
    further = {name.replace("layers.3", "mtp.0"): tensors[name].clone() for name in last}
    save_file(tensors | further, tmp_path / "model.safetensors", {"format": "pt"})
    checkpoint = Checkpoint.open(tmp_path)
    found = structure.layout(structure.skeleton(config_of(), torch.bfloat16, attention_name()), checkpoint.tensors)
    assert found.embedding == "embed.weight" and "hc_head_fn" in found.shared and "layers.0.ffn.gate.tid2eid" in found.shared
    assert {name for names in found.aside.values() for name in names} == {name for name in checkpoint.tensors if "mtp." in name}
    with pytest.raises(CheckpointError, match="a layer for multi-token prediction that reads 3 states side by side; not supported"):
        opened(tmp_path, method="mtp")


def test_what_cannot_be_done_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, FAMILY, torch.bfloat16)
    with pytest.raises(CheckpointError, match="compresses the keys of old tokens, and what it keeps has no 8 bits"):
        opened(tmp_path, kv_bits=8)
    with pytest.raises(UsageError, match="layers that recur, slide or compress keys: choose ragged"):
        opened(tmp_path, policy="exspec", rows=2)
    monkeypatch.setitem(DEVICES, "fake", "tests.fake_device:open_fake")
    with pytest.raises(UsageError, match="compress the keys of old tokens, which runs on the processor alone"):
        opened(tmp_path, device="fake")

"""Tables of n-grams and the convolution beside them: each node's are of its own path, and the tables stay on the disk."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from tests.tiny import byte_tokenizer, generated, opened, save, stock, values_of
from understudy import SamplingParams
from understudy.errors import CheckpointError, UsageError
from understudy.models.hashed_rows import HashedTable, TableRows
from understudy.models.proving import proof
from understudy.models.stock import ngrams, structure
from understudy.models.stock.shape import ModelShape
from understudy.models.streamed import attention_name
from understudy.models.taps import install
from understudy.weights.store import Store

FAMILY = "qwen4_exp_text"
# with ends of texts in it, which n-grams do not reach beyond
PROMPT = [(i * i + i // 3) % 90 if i % 7 else 0 for i in range(150)]
LONG = [(i * i * 7 + i // 3) % 251 for i in range(1100)]
SAMPLED = SamplingParams(max_new_tokens=50, ignore_eos=True, temperature=0.7, seed=5)


def config_of(**changes: Any) -> Any:
    return AutoConfig.for_model(**values_of(FAMILY, **changes))


class Pass:
    """Tells tokens, and convolves nothing."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens

    def history(self, layer: int) -> Tensor:
        self.layer = layer
        return self.tokens

    def convolve(self, *asked: Any) -> Tensor:
        self.asked = asked
        return asked[1]


class Holder:
    def __init__(self, under_way: Any) -> None:
        self.under_way = under_way


def test_layers_that_look_n_grams_up_keep_tokens_and_what_is_convolved() -> None:
    layers = ModelShape.of(config_of()).layers
    assert [layer.history for layer in layers] == [2, 0, 2, 0]
    assert [layer.recurrent.further for layer in layers if layer.recurrent] == [(4 * 64,)] * 2
    structure.check_structure(structure.skeleton(config_of(), torch.float32, attention_name()))


def test_stock_code_hashes_the_path_that_the_pass_tells() -> None:
    """The rows of each node are those that the stock module gives at the end of its path, alone."""
    theirs = stock(FAMILY).model.layers[2].ple.ple_embedding
    model = nn.Sequential(stock(FAMILY).model.layers[2].ple)
    assert ngrams.install_ngrams(model) == 1
    ours: Any = model[0].ple_embedding
    assert isinstance(ours.ngram_embedding, HashedTable)
    ours.ngram_embedding.rows = TableRows(theirs.ngram_embedding.weight.detach())
    paths = [[5], [5, 9], [1, 5, 9, 7], [9, 0, 7], [0, 7, 8], [7, 8, 0], [0], [3, 0, 0]]
    told = torch.tensor([([-1] * 3 + path)[-3:] for path in paths])
    ours.understudy = Holder(under_way := Pass(told))
    found = ours(torch.zeros(1, len(paths), dtype=torch.int64), None)
    assert under_way.layer == 2 and found.shape == (1, len(paths), 64)
    for node, path in enumerate(paths):
        assert torch.equal(found[0, node], theirs(torch.tensor([path]), None)[0, -1])


def test_the_taps_of_a_convolution_are_apart() -> None:
    ple: Any = stock(FAMILY).model.layers[0].ple
    ngrams.install_ngrams(nn.Sequential(ple))
    ple.understudy = Holder(under_way := Pass(torch.zeros(0)))
    states = torch.randn(1, 5, 256)
    assert torch.equal(ple._short_conv(states, None), nn.functional.silu(states))
    place, _, weight, bias, number = under_way.asked
    assert (place, number) == (0, -1) and bias is None and weight.shape == (256, 10)
    assert torch.equal(weight[:, ::3], ple.conv1d.weight[:, 0]) and weight.count_nonzero() == ple.conv1d.weight.count_nonzero()


@pytest.mark.parametrize("wrong", ["a token too far", "no end mark", "another path"])
def test_a_proof_sees_tokens_that_are_not_the_path(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from understudy.token_history import TokenHistory

    before = TokenHistory.before

    def other(self: TokenHistory, nodes: Any) -> Tensor:
        found = before(self, nodes)
        if wrong == "a token too far":
            return torch.cat([found[:, :1], found[:, :-2], found[:, -1:]], 1)
        if wrong == "no end mark":
            return found.masked_fill(found < 0, 1)
        # of the node that lies before it, whoever its parent is
        slots = (nodes.slots[:, None] - torch.arange(self.behind, -1, -1)).clamp(min=0)
        return torch.where(found < 0, found, self.tokens[nodes.rows[:, None], slots].long())

    monkeypatch.setattr(TokenHistory, "before", other)
    assert "gives other logits" in str(proof.fault(config_of()))


def test_long_texts_are_those_of_transformers_in_every_way(tmp_path: Path) -> None:
    """Alone and side by side, and after a prefix that is copied; with weights that stream."""
    model = save(tmp_path / "single", FAMILY)
    with opened(tmp_path / "single") as llm:
        single = llm.generate(PROMPT, SamplingParams(max_new_tokens=60, ignore_eos=True))[0]
    assert single.token_ids == generated(model, PROMPT, 60) and single.stats.accepted > 0
    save(tmp_path / "half", FAMILY, torch.bfloat16)
    prompts = [PROMPT, [*PROMPT[:140], 7, 8, 9], PROMPT[20:]]
    texts = []
    for options in ({"method": "none"}, {}, {"rows": 3}, {"resident": "auto"}):
        with opened(tmp_path / "half", **options) as llm:
            done = llm.generate(prompts, SAMPLED)
            texts.append([text.token_ids for text in done])
            assert options == {"method": "none"} or min(text.stats.accepted for text in done) > 0
            assert "resident" in options or min(text.stats.bytes_streamed for text in done) > 0
            read = [table for table in llm.model.lookup.hashed.values() if table.kept]  # type: ignore[union-attr]
            assert len(read) == 2 and all(len(table.firsts) == 6 for table in read)
    assert all(found == texts[0] for found in texts) and len({token for text in texts[0] for token in text}) > 8


def test_a_text_goes_on_from_what_lies_on_the_disk(tmp_path: Path) -> None:
    save(tmp_path / "half", FAMILY, torch.bfloat16, max_position_embeddings=2048)
    with opened(tmp_path / "half", method="none", context=1536) as llm:
        plain = llm.generate(LONG, SAMPLED)[0].token_ids
    found = []
    for _ in range(2):
        with opened(tmp_path / "half", context=1536, prefix_cache=str(tmp_path / "kept")) as llm:
            done = llm.generate(LONG, SAMPLED)[0]
            assert done.token_ids == plain and done.stats.accepted > 0
            found.append(done.stats.cached_tokens)
    assert found[0] == 0 and found[1] >= 1024, "nothing was found on the disk: the test shows nothing"


def test_numbers_of_hashes_are_those_that_are_stored(tmp_path: Path) -> None:
    """Another program may have drawn others."""
    model = stock(FAMILY)
    for ple in (model.model.layers[0].ple, model.model.layers[2].ple):
        ple.ple_embedding.layer_multipliers += 2
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with opened(tmp_path) as llm:
        done = llm.generate(PROMPT[:60], SamplingParams(max_new_tokens=20, ignore_eos=True))[0]
        shared = [name for name in llm.store.shared if name.endswith("layer_multipliers")]
        assert len(shared) == 2 and all(llm.store.shared[name].dtype == torch.int64 for name in shared)
    assert done.token_ids == generated(model, PROMPT[:60], 20) != generated(stock(FAMILY), PROMPT[:60], 20)


def test_a_piece_of_a_table_is_missing_or_damaged(tmp_path: Path) -> None:
    save(tmp_path / "model", FAMILY)
    with opened(tmp_path / "model") as llm:
        path, tables = llm.store.path, list(llm.store.tables.values())
    assert len(tables) == 10
    stored = tables[7]
    with (path / stored.file).open("r+b") as file:
        file.seek(stored.offset)
        byte = file.read(1)
        file.seek(stored.offset)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(Exception, match="is damaged in bytes"), opened(tmp_path / "model"):
        pass
    config = config_of()
    tensors = proof.Specimen.of(proof.shrunk(config)).tensors
    model = structure.skeleton(proof.shrunk(config), torch.float32, attention_name())
    infos = {
        name: proof.TensorInfo(name, each.dtype, tuple(each.shape), Path(), 0, each.nbytes) for name, each in tensors.items()
    }
    assert len(structure.layout(model, infos).tables) == 3
    del infos[next(name for name in infos if name.endswith("shard_1.weight"))]
    with pytest.raises(CheckpointError, match=r"shard_2\.weight is .* where the config asks for"):
        structure.layout(model, infos)


def test_states_between_layers_are_several(tmp_path: Path) -> None:
    model = structure.skeleton(config_of(), torch.float32, attention_name())
    install(model, [-1], None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="hand on 4 states side by side"):
        install(model, [-2], None)  # type: ignore[arg-type]


def test_a_store_lists_the_pieces_of_its_tables(tmp_path: Path) -> None:
    save(tmp_path, FAMILY)
    with opened(tmp_path) as llm:
        again = Store.open(llm.store.path)
    assert again.layout.tables == llm.store.layout.tables and len({table.module for table in again.layout.tables}) == 2

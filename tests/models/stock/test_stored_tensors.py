"""What a checkpoint stores beside the weights of Linears: buffers, and tensors of which several are one."""

from types import SimpleNamespace

import torch
from torch import nn

from tests.tiny import stock
from understudy.models.stock.names import finder
from understudy.models.stock.stored_tensors import buffers_found, pieces_of, stored_buffers, tables_shapes


def test_whole_numbers_are_stored_where_n_grams_are_hashed_with_them() -> None:
    model = stock("qwen4_exp_text")
    model.model.register_buffer("counted", torch.tensor([1, 2]))
    model.model.register_buffer("scale", torch.tensor([1.0, 2.0]))
    names = {name for name in stored_buffers(model) if "layers" not in name}
    hashing = {name.rpartition(".")[2] for name in stored_buffers(model) if "layers" in name}
    assert names == {"model.scale"}
    assert hashing == {"layer_multipliers", "ngram_heads_vocab_sizes", "ngram_heads_offsets"}
    checkpoint = [name for name in model.state_dict() if "ngram_heads_offsets" not in name]
    shapes, whole = buffers_found(model, finder(model, checkpoint), str)
    assert len(shapes) == 5 and len(whole) == 4 and shapes["model.scale"] == (2,)
    assert all(shapes[name] in ((3,), (4,)) for name in whole)


def test_pieces_have_the_rows_that_they_have_and_the_last_one_the_rest() -> None:
    tensors = {name: SimpleNamespace(shape=(rows, 4)) for name, rows in (("a", 3), ("b", 5), ("c", 2))}
    assert pieces_of(["a"], tensors, (9, 4)) == {"a": (9, 4)}
    assert pieces_of(["a", "b", "c"], tensors, (10, 4)) == {"a": (3, 4), "b": (5, 4), "c": (2, 4)}
    assert pieces_of(["a", "b", "c"], tensors, (11, 4))["c"] == (3, 4)
    model = nn.ModuleDict({"one": nn.Embedding(8, 4), "two": nn.Embedding(2, 4)})
    assert tables_shapes(model, ["a", "b", "c"], ["one", "one", "two"], tensors) == {"a": (3, 4), "b": (5, 4), "c": (2, 4)}

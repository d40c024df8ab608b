"""A footprint counts what is held: foretold from a checkpoint it is that of its Store, and what is not held takes nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from tests.fake_device import FakeDevice
from tests.tiny import COMMON, FAMILIES, save, values_of
from tests.weights import made
from understudy import LLM
from understudy.models.embedding import ROW
from understudy.models.footprint import (
    EMBEDDING_ROOM,
    WeightSizes,
    footprint_of,
    on_device,
    sizes_of_checkpoint,
    sizes_of_store,
)
from understudy.models.stock.shape import ModelShape
from understudy.models.target import TILE
from understudy.sources import layout_of
from understudy.weights.checkpoint import Checkpoint
from understudy.weights.prepare import prepare
from understudy.weights.recipe import Recipe
from understudy.weights.store import Store

# what --head-bits calls a quantiser
BITS = {"int4": 4, "int8": 8, "exact": 16}


def both(tmp_path: Path, recipe: Recipe, held: bool, family: str = "llama", **changes: Any) -> tuple[WeightSizes, WeightSizes]:
    """Sizes foretold from a checkpoint, and those of its Store."""
    save(tmp_path / "model", family, torch.bfloat16, **changes)
    checkpoint = Checkpoint.open(tmp_path / "model")
    foretold = sizes_of_checkpoint(checkpoint.tensors, layout_of(checkpoint, tmp_path), recipe, held)
    options = {"quantizer": recipe.quantizer, "head_bits": BITS[recipe.head or recipe.quantizer], "codec": recipe.codec}
    store = LLM.prepare(tmp_path / "model", output=tmp_path / "store", **options)
    assert Store.open(store.path).recipe.head == recipe.head
    return foretold, sizes_of_store(Store.open(store.path), held)


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize(("quantizer", "head"), [("int4", ""), ("int4", "int8"), ("int8", ""), ("exact", "")])
def test_raw_weights_are_foretold_to_the_byte(tmp_path: Path, quantizer: str, head: str, held: bool) -> None:
    foretold, known = both(tmp_path, Recipe(quantizer, "raw", head=head), held)
    assert foretold == known
    assert (known.substitute_bytes > 0) == (held or quantizer == "exact")
    assert bool(known.part_bytes) == (quantizer != "exact") and known.decoding_bytes == 0


def test_transposed_weights_are_foretold_as_copied_where_others_are_linked(tmp_path: Path) -> None:
    gpt2 = {"model_type": "gpt2", "num_key_value_heads": None, "n_inner": 160}
    foretold, known = both(tmp_path, Recipe("int4", "link"), held=False, **gpt2)
    assert foretold.linears == known.linears and foretold.decoding_bytes == known.decoding_bytes
    assert len(known.part_bytes) == 13 and foretold.part_bytes[:-1] == known.part_bytes[:-1], "all but the head's"


def test_delta_is_foretold_by_usual_weights_and_needs_its_substitute(tmp_path: Path) -> None:
    foretold, known = both(tmp_path, Recipe("int4", "delta", head="int8"), held=False, hidden_size=256, intermediate_size=512)
    assert foretold.linears == known.linears and known.substitute_bytes > 0, "it is decoded with the substitute"
    assert sum(foretold.part_bytes) == pytest.approx(sum(known.part_bytes), rel=0.1)
    assert foretold.decoding_bytes == known.decoding_bytes > 0
    assert foretold.widest_outputs == known.widest_outputs == 512


def test_shapes_that_cannot_be_quantised_are_held_whole(tmp_path: Path) -> None:
    """32 does not divide 40: the weight itself is its substitute, and nothing of it streams."""
    foretold, known = both(tmp_path, Recipe("int4", "raw"), held=False, hidden_size=40, intermediate_size=40)
    assert foretold == known and not known.part_bytes
    assert all(linear.substitute_bytes == linear.exact_bytes and linear.parts == 0 for linear in known.linears)


def shape_of(**changes: Any) -> ModelShape:
    return ModelShape.of(AutoConfig.for_model("llama", **{**COMMON, **changes}))


SIZES = WeightSizes(
    part_bytes=(), shared=((torch.bfloat16, 6), (torch.float32, 4)), decoding_bytes=11, widest_outputs=160, linears=(),
    tables=((256, 64),),
)  # fmt: skip


def test_a_footprint_is_added_up_from_the_shape() -> None:
    footprint = footprint_of(SIZES, shape_of(), torch.bfloat16, cores=3)
    assert footprint.kv_bytes_per_token == 2 * 3 * 2 * 16 * 2, "keys and values, layers, heads, size, bytes"
    assert footprint.tile_bytes == TILE * (5 * 64 + 2 * 160) * 2
    assert footprint.tile_logits_bytes == TILE * 256 * 2
    assert footprint.embedding_bytes == 256 * (64 * 2 + ROW) + TILE * 64 * 2, "no more rows are kept than there are"
    large = footprint_of(replace(SIZES, tables=((1 << 20, 64),)), shape_of(), torch.bfloat16)
    assert large.embedding_bytes == EMBEDDING_ROOM + TILE * 64 * 2
    assert (footprint.shared_bytes, footprint.decoding_bytes, footprint.levels) == (12, 11, None)


@pytest.mark.parametrize("held", [False, True])
def test_what_widens_latent_states_is_there_whole_and_states_are_kept(held: bool, tmp_path: Path) -> None:
    stored, foretold = both(tmp_path, Recipe("int4", "raw"), held, "minicpm3")
    config = AutoConfig.for_model(**values_of("minicpm3"))
    for sizes in (stored, foretold):
        assert len(sizes.widening) == config.num_hidden_layers
        wide, kept = (footprint_of(sizes, ModelShape.of(config, latent=latent), torch.bfloat16) for latent in (False, True))
        assert kept.kv_bytes_per_token == 2 * 3 * (40 + 8) < wide.kv_bytes_per_token
        exact = [kept.linears[index] for index in sorted(sizes.widening)]
        assert all(one.always and one.substitute_bytes == one.exact_bytes > 0 and not one.extra_bytes for one in exact)
        without = sum(sizes.linears[index].substitute_bytes for index in sizes.widening)
        assert kept.substitute_bytes - wide.substitute_bytes == sum(one.exact_bytes for one in exact) - without
        assert not any(one.always for one in wide.linears)


def test_a_table_beside_the_embedding_takes_its_rows_and_what_becomes_of_them() -> None:
    two = replace(SIZES, tables=((256, 64), (256, 96)))
    one, more = (footprint_of(sizes, shape_of(), torch.bfloat16) for sizes in (SIZES, two))
    assert more.tile_bytes - one.tile_bytes == TILE * 96 * 2
    assert more.embedding_bytes - one.embedding_bytes == 256 * (96 * 2 + ROW) + TILE * 96 * (2 + 4 * 4)
    device = FakeDevice(triton=False)
    assert on_device(more, two, shape_of(), torch.bfloat16, device).embedding_bytes == 256 * (64 + 96) * 2


def test_states_side_by_side_are_there_as_they_were_and_as_they_are_foretold() -> None:
    one = footprint_of(SIZES, shape_of(), torch.bfloat16)
    four = footprint_of(SIZES, replace(shape_of(), states=4), torch.bfloat16)
    assert four.tile_bytes - one.tile_bytes == TILE * 2 * 3 * shape_of().hidden_size * 2
    assert four.state_line == 4 * one.state_line


def test_a_layer_that_reads_anothers_keys_takes_nothing() -> None:
    """Of eight layers two slide and two do not; the others read those of the last two, which are held whole."""
    shape = ModelShape.of(AutoConfig.for_model(**{**COMMON, **FAMILIES["gemma4-e"]}))
    footprint = footprint_of(SIZES, shape, torch.bfloat16)
    assert footprint.kv_bytes_per_token == 2 * 2 * (2 * 32 + 16) * 2, "keys and values, heads, layers of each size, bytes"
    (window,) = footprint.kv_windows
    assert window == (2 * 2 * 16 * 2, 640)


def test_float16_keeps_keys_and_values_in_float32() -> None:
    half, single = (footprint_of(SIZES, shape_of(), dtype).kv_bytes_per_token for dtype in (torch.float16, torch.float32))
    assert half == single


def test_logits_that_the_model_changes_are_there_three_times() -> None:
    plain = footprint_of(SIZES, shape_of(), torch.float32)
    scaled = footprint_of(SIZES, ModelShape.of(AutoConfig.for_model("granite", **COMMON, logits_scaling=4.0)), torch.float32)
    assert scaled.choosing_bytes - plain.choosing_bytes == 2 * plain.tile_logits_bytes


@pytest.mark.parametrize("triton", [True, False])
def test_a_model_that_drafts_on_a_device_holds_its_table_and_its_levels(triton: bool) -> None:
    shape = shape_of()
    device = FakeDevice(triton=triton)
    footprint = on_device(footprint_of(SIZES, shape, torch.float32), SIZES, shape, torch.float32, device)
    assert footprint.embedding_bytes == 256 * 64 * 4
    assert footprint.levels is not None and footprint.levels.node_bytes > 256 * (4 + 4 + 4)
    assert (footprint.levels.recorded_bytes > 0) == triton, "nothing is recorded without Triton"


def test_what_both_views_share_is_there_twice_where_its_type_changes() -> None:
    stored = WeightSizes((), ((torch.bfloat16, 100), (torch.float32, 40)), 0, 0, (), ())
    assert [stored.shared_bytes(dtype) for dtype in (torch.bfloat16, torch.float16, torch.float32)] == [160, 260, 340]


@pytest.mark.parametrize("codec", ["raw", "delta", "link"])
@pytest.mark.parametrize("pieces", [True, False])
def test_experts_are_foretold_part_by_part(pieces: bool, codec: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(made.write(tmp_path / "model", made.mixture(pieces, rows=128), shards=2))
    layout, recipe = made.layout(checkpoint), Recipe("int4", codec)
    foretold = sizes_of_checkpoint(checkpoint.tensors, layout, recipe, holds_substitute=True)
    known = sizes_of_store(prepare(checkpoint, layout, tmp_path / "store", recipe), holds_substitute=True)
    # the linked head has fewer rows than its blocks
    assert foretold.linears == known.linears and len(foretold.part_bytes) == len(known.part_bytes)
    assert (foretold.widest_outputs, foretold.decoding_bytes) == (known.widest_outputs, known.decoding_bytes)
    assert known.widest_outputs == 384, "an expert has 256 outputs, all of a layer have more"
    assert codec != "raw" or foretold == known

"""What is prepared reads back: exact weights bit for bit, shared tensors, configuration; damage anywhere is found."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from understudy.errors import StoreError
from understudy.weights.checkpoint import Checkpoint
from understudy.weights.prepare import estimate, prepare
from understudy.weights.recipe import Recipe
from understudy.weights.store import Store

from .made import layout, mixture, tall, tensors, write


def _store(tmp_path: Path, **options: str) -> Store:
    checkpoint = Checkpoint.open(write(tmp_path / "model", tensors()))
    return prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe(**options))


@pytest.mark.parametrize("quantizer", ["int4", "int4:group=32", "int8", "exact"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_round_trip(tmp_path: Path, quantizer: str, dtype: torch.dtype) -> None:
    made = tensors(dtype, tied=dtype == torch.float16)
    checkpoint = Checkpoint.open(write(tmp_path / "model", made, shards=2))
    store = prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe(quantizer=quantizer))
    assert store.layout == layout(checkpoint)
    assert store.config == checkpoint.config
    assert list(store.linears) == [spec.module for spec in store.layout.linears]
    for entry in store.linears.values():
        assert torch.equal(torch.cat(list(store.rows_of(entry))), made[entry.weight])
    for name, stored in store.shared.items():
        assert torch.equal(store.read(stored), made[name])
    assert torch.equal(store.read(store.embedding), made["embed.weight"])
    assert torch.equal(store.read(store.extra["rotary.inverse"]), made["rotary.inverse"])
    store.verify()


@pytest.mark.parametrize(
    "named, wanted", [({}, "float32"), ({"dtype": "float32"}, "float32"), ({"torch_dtype": "bfloat16"}, "bfloat16")]
)
@pytest.mark.parametrize("odd", ["layers.0.up.weight", "layers.1.down.weight"])
def test_weights_of_several_types_are_computed_with_in_the_type_that_the_config_names(
    named: dict[str, str], wanted: str, odd: str, tmp_path: Path
) -> None:
    made = tensors(torch.float32)
    made[odd] = made[odd].bfloat16()
    directory = write(tmp_path / "model", made)
    config = directory / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **named}))
    checkpoint = Checkpoint.open(directory)
    assert prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe()).dtype == getattr(torch, wanted)


def test_codec_is_chosen_by_tensor(tmp_path: Path) -> None:
    """delta where it is smaller; raw where it is not, or where the substitute is the weight itself."""
    made = tensors(hidden=256)
    noise = torch.randint(-(2**15), 2**15, made["layers.1.up.weight"].shape, dtype=torch.int16)
    made["layers.1.up.weight"] = noise.bitwise_and(~0x80).view(torch.bfloat16)  # no exponent of a NaN
    made["layers.1.down.weight"] = torch.randn(100, 100).bfloat16()  # 32 does not divide 100
    checkpoint = Checkpoint.open(write(tmp_path / "model", made))
    store = prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe(codec="delta"))
    chosen = {module: entry.codec for module, entry in store.linears.items()}
    assert chosen.pop("layers.1.up") == "raw" and chosen.pop("layers.1.down") == "raw"
    assert set(chosen.values()) == {"delta"}
    entry = store.linears["layers.0.up"]
    assert sum(part.stored.nbytes for part in entry.parts) < 0.5 * made[entry.weight].nbytes
    store.verify()


def test_extents_are_aligned_in_execution_order_and_files_hold_whole_pages(tmp_path: Path) -> None:
    store = _store(tmp_path)
    extents = [part.stored for entry in store.linears.values() for part in entry.parts]
    offsets = [stored.offset for stored in extents]
    assert offsets == sorted(offsets) and all(offset % 4096 == 0 for offset in offsets)
    last = extents[-1]
    assert store.file(last.file).stat().st_size >= last.offset + last.padded


def test_estimate_is_near(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write(tmp_path / "model", tensors(hidden=512)))
    store = prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe())
    size = sum(file.stat().st_size for file in store.path.glob("*.bin"))
    extents = len(store.extents)
    assert abs(size - estimate(checkpoint, layout(checkpoint), Recipe())) <= 4096 * extents + 0.02 * size


@pytest.mark.parametrize("file", ["substitute.bin", "residual.bin", "shared.bin", "index.json", "config.json"])
def test_flipped_bit_is_found_and_named(tmp_path: Path, file: str) -> None:
    store = _store(tmp_path)
    path = store.file(file)
    data = bytearray(path.read_bytes())
    data[20 if file == "config.json" else 200] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(StoreError, match=file.replace(".", r"\.")) as caught:
        Store.open(store.path).verify()
    assert "\n" not in str(caught.value)


def test_weight_that_decodes_differently_is_named(tmp_path: Path) -> None:
    store = _store(tmp_path)
    entry = replace(store.linears["layers.0.up"], checksum="0" * 16)
    with pytest.raises(StoreError, match=r"layers\.0\.up"):
        replace(store, linears={**store.linears, "layers.0.up": entry}).verify()


def test_truncated_file_is_named(tmp_path: Path) -> None:
    store = _store(tmp_path)
    path = store.file("residual.bin")
    path.write_bytes(path.read_bytes()[:-4096])
    with pytest.raises(StoreError, match=r"residual\.bin"):
        Store.open(store.path)


@pytest.mark.parametrize("codec", ["raw", "link"])
@pytest.mark.parametrize("quantizer", ["int4", "exact"])
@pytest.mark.parametrize("pieces", [True, False])
def test_experts_are_rebuilt_a_unit_at_a_time(tmp_path: Path, pieces: bool, quantizer: str, codec: str) -> None:
    made = mixture(pieces)
    checkpoint = Checkpoint.open(write(tmp_path / "model", made, shards=3))
    store = prepare(checkpoint, layout(checkpoint), tmp_path / "store", Recipe(quantizer, codec))
    for spec in (spec for spec in store.layout.linears if spec.experts):
        found = list(store.rows_of(store.linears[spec.module]))
        assert [len(rows) for rows in found] == [spec.unit] * (spec.shape[0] // spec.unit)
        assert torch.equal(torch.cat(found), tall(made, spec))

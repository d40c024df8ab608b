"""How keys are compressed, in numbers."""

from understudy.compression import CompressedShape
from understudy.layer_states import LayerShape


def test_an_entry_is_made_of_its_block_or_of_the_one_before_too() -> None:
    alone, overlapping = CompressedShape(128), CompressedShape(4, overlaps=True, index_size=128)
    assert (alone.looks_back, overlapping.looks_back) == (128, 8)
    assert (alone.parts(512), overlapping.parts(512), overlapping.parts(128), alone.parts(0)) == (1024, 2048, 512, 0)


def test_a_layer_holds_what_an_entry_is_made_of() -> None:
    usual, long = (LayerShape(1, 8, 8, window=100, latent=True, compressed=CompressedShape(rate)) for rate in (100, 200))
    assert (usual.looks_back, long.looks_back) == (100, 200)
    assert (usual.window_slots, long.window_slots) == (704, 832)

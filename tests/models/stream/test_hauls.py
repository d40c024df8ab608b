"""Parts that come together: neighbours in a file, of one Linear, up to a size; and the same text however they come."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import save
from understudy import LLM, SamplingParams
from understudy.devices import DEVICES
from understudy.models.stream import hauls
from understudy.models.stream.hauls import hauls_of, largest_haul
from understudy.tiers import Extent
from understudy.tiers.memory import aligned

FILE = Path("weights")


@given(st.data())
def test_every_part_comes_once_in_order_and_where_it_is_said_to(data: st.DataObject) -> None:
    extents, parts, offset = {}, [], 0
    for number in range(data.draw(st.integers(1, 12))):
        offset += 4096 * data.draw(st.sampled_from([0, 0, 0, 1]))
        extents[number] = Extent(FILE, offset, data.draw(st.integers(1, 20000)))
        offset += aligned(extents[number].nbytes)
        parts.append((number, data.draw(st.sampled_from([0, 1])) + (parts[-1][1] if parts else 0)))
    kept = [part for part in parts if data.draw(st.booleans())]
    most = data.draw(st.sampled_from([0, 30000, 1 << 20]))
    found = hauls_of(kept, extents, most)
    assert [part for haul in found for part in haul.parts] == [number for number, _ in kept]
    linear = dict(parts)
    for haul in found:
        assert len({linear[part] for part in haul.parts}) == 1 and haul.starts[0] == 0
        assert len(haul.parts) == 1 or haul.extent.nbytes <= most
        for part, start in zip(haul.parts, haul.starts, strict=True):
            assert haul.extent.offset + start == extents[part].offset
            assert start + extents[part].nbytes <= haul.extent.nbytes
    for one, after in pairwise(found):
        apart = linear[one.parts[-1]] != linear[after.parts[0]]
        behind = after.extent.offset == one.extent.offset + aligned(one.extent.nbytes)
        # a haul that takes no more is full, or as large as an even cut makes it
        full = aligned(one.extent.nbytes) + extents[after.parts[0]].nbytes > most
        assert apart or not behind or full or one.extent.nbytes > most / 2


def test_several_of_the_largest_fit_into_the_ring() -> None:
    assert largest_haul(64 << 20, accelerator=True) == 8 << 20 and largest_haul(4 << 30, accelerator=True) == 32 << 20
    assert largest_haul(8 << 20, accelerator=False) == 1 << 20 and largest_haul(4 << 30, accelerator=False) == 4 << 20


@pytest.mark.parametrize("codec", ["raw", "delta"])
def test_a_device_brings_many_parts_at_once_and_writes_the_same(
    codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setitem(DEVICES, "fake", "tests.fake_device:open_fake")
    # a part for each block of 64 outputs
    monkeypatch.setattr("understudy.weights.entries.PART_BYTES", 8192)
    save(tmp_path, "llama", torch.bfloat16, num_hidden_layers=1, hidden_size=64, intermediate_size=192)
    options: dict[str, Any] = {
        "device": "fake",
        "codec": codec,
        "resident": "none",
        "memory": "1GiB",
        "context": 64,
        "rows": 1,
    }
    texts, fetches = [], []
    for most in (0, 32 << 20):
        monkeypatch.setattr(hauls, "MOST_BYTES", most)
        with LLM(tmp_path, method="none", **options) as llm:
            done = llm.generate([[5, 99, 5, 12]], SamplingParams(max_new_tokens=3, ignore_eos=True))[0]
            assert done.stats.bytes_streamed > 0 and llm.model.ring is not None
            texts.append(done.token_ids)
            fetches.append(len(llm.model.ring.tier.extents))
    assert texts[0] == texts[1] and fetches[1] < fetches[0]

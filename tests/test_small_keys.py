"""Keys and values in 8 bits are near what they were made of, whoever writes them, and lines stay what they are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import opened, save
from understudy import SamplingParams
from understudy.errors import UsageError
from understudy.kernels.numbers import step_of, write_codes
from understudy.layer_states import FullState, LayerShape, SlidingState
from understudy.small_keys import LINES, NOT_EXACT, STEP_BYTES, packed, plain, size_in, stored
from understudy.tree import AcceptedPath, Nodes, TokenTree


@given(st.integers(0, 1000), st.sampled_from([8, 20, 64]), st.sampled_from([torch.float32, torch.bfloat16]), st.floats(1e-6, 1e4))
def test_each_number_is_off_by_half_a_step_at_most(seed: int, size: int, dtype: torch.dtype, scale: float) -> None:
    numbers = (torch.randn(3, 2, size, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)
    lines = packed(numbers)
    assert lines.dtype == LINES and lines.shape == (3, 2, size + STEP_BYTES) and size_in(lines) == size
    steps = numbers.float().abs().amax(-1, keepdim=True) / 127
    assert ((plain(lines) - numbers.float()).abs() <= steps * 0.501).all()
    # What is packed again stays what it is.
    assert torch.allclose(plain(packed(plain(lines))), plain(lines), rtol=1e-6)


def test_zeros_stay_zeros_and_other_slabs_are_left_alone() -> None:
    assert not plain(packed(torch.zeros(2, 8))).any()
    slab = torch.randn(2, 8, dtype=torch.bfloat16)
    assert plain(slab) is slab and size_in(slab) == 8 and stored(torch.ones(8), slab).dtype == torch.bfloat16


def test_a_kernel_writes_the_same_lines() -> None:
    numbers = torch.randn(16, generator=torch.Generator().manual_seed(1))
    line = np.zeros(16 + STEP_BYTES, np.uint8)
    write_codes(numbers.numpy(), line.ctypes.data)
    assert abs(step_of(line, 16) - float(numbers.abs().max()) / 127) < 1e-9
    assert torch.equal(plain(torch.from_numpy(line)), plain(packed(numbers)))


@pytest.mark.parametrize("kind", [FullState, SlidingState])
def test_a_layer_holds_lines_and_moves_them_as_they_are(kind: type[FullState]) -> None:
    shape = LayerShape(2, 16, 32, window=70 if kind is SlidingState else 0, small=True)
    assert shape.token_bytes(2) == 2 * (16 + 32) + 4 * STEP_BYTES and LayerShape(2, 16, 32).token_bytes(2) == 2 * (16 + 32) * 2
    state = kind(shape, 2, shape.slots(1024), torch.bfloat16)
    assert state.nbytes == 2 * shape.slots(1024) * shape.token_bytes(2)
    keys, values = torch.randn(5, 2, 16), torch.randn(5, 2, 32)
    nodes = Nodes.of(TokenTree.of([0] * 5, [-1, 0, 0, 1, 2]), 0, 10)
    state.write(nodes, keys, values)
    state.write_one(0, 15, keys[0], values[0])
    assert torch.equal(state.keys[0, :, 10:15], packed(keys).transpose(0, 1)) and torch.equal(state.keys[0, :, 15], packed(keys[0]))
    state.keep(0, 10, AcceptedPath(torch.tensor([0, 2, 4])))
    state.copy(0, 1, 13)
    assert torch.equal(plain(state.values[1, :, 11]), plain(packed(values[2])))
    assert torch.equal(plain(state.values[1, :, 12]), plain(packed(values[4])))


PROMPTS = [[5, 9, 77, 5, 9, 77, 5], [3 * i % 250 + 1 for i in range(90)]]


@pytest.mark.parametrize(("family", "changes"), [("llama", {}), ("mistral", {"sliding_window": 24})])
@pytest.mark.parametrize("temperature", [0, 0.8])
def test_drafted_text_is_that_of_plain_decoding_with_such_keys(
    tmp_path: Path, family: str, changes: dict[str, Any], temperature: float
) -> None:
    save(tmp_path, family, torch.bfloat16, **changes)
    params = SamplingParams(temperature=temperature, seed=3, max_new_tokens=40, ignore_eos=True)
    said: list[str] = []
    found = []
    for method in ("none", "substitute"):
        with opened(tmp_path, method=method, kv_bits=8, rows=2, progress=lambda stage, *_: said.append(stage)) as llm:
            done = llm.generate(PROMPTS, params)
            found.append([one.token_ids for one in done])
            assert all(state.keys.dtype == LINES for state in llm.model.cache.layers)
            assert llm.plan.kv_bits == llm.plan.to_dict()["kv_bits"] == 8 and NOT_EXACT in llm.plan.lines()
            assert llm.model.cache.nbytes <= llm.plan.items["KV cache"]
            streamed, small = done[0].stats.bytes_streamed, llm.plan.items["KV cache"]
    assert found[0] == found[1] and streamed > 0 and NOT_EXACT in said
    assert sum(one.stats.rounds for one in done) < 2 * 40, "nothing that was drafted was accepted"
    with opened(tmp_path, rows=2) as llm:
        assert small < llm.plan.items["KV cache"] * 0.65 and "kv_bits" not in llm.plan.to_dict()


def test_what_cannot_have_such_keys_says_so(tmp_path: Path) -> None:
    save(tmp_path)
    with pytest.raises(UsageError, match="--kv-bits 8 is not for keys and values that spill"):
        opened(tmp_path, kv_bits=8, spill=64)

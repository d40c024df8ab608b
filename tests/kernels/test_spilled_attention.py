"""Attention over keys and values in a file has the bits of attention over those in memory."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from understudy.kernels import attention, spilled_attention
from understudy.kernels.attention import AttentionSpec
from understudy.layer_states import FullState, LayerShape
from understudy.spilled import Spill, SpilledState, SpillStore
from understudy.tiers import ReadSettings
from understudy.tree import Nodes, TokenTree

LENGTHS = (2500, 130)
TREE = TokenTree.of([1] * 8, [-1, 0, 0, 1, 2, 4, 5, 3])


class Layer:
    """One layer of two texts, in memory and spilled."""

    def __init__(self, directory: Path, kv_heads: int, sizes: tuple[int, int], dtype: torch.dtype, threads: int) -> None:
        shape = LayerShape(kv_heads, *sizes)
        self.plain = FullState(shape, 2, 3072, dtype)
        self.store = SpillStore(Spill(directory, ReadSettings(1 << 16, 2), 64, threads), [shape], 2, 3072, dtype)
        self.state = SpilledState(shape, 2, self.store, dtype)
        torch.manual_seed(1)
        for row, length in enumerate(LENGTHS):
            for start in range(0, length, 50):
                self.write(Nodes.of(TokenTree.chain([1] * 50), row, start)[: length - start])
        self.nodes = Nodes.join([Nodes.of(TREE, row, length) for row, length in enumerate(LENGTHS)])
        self.write(self.nodes)

    def write(self, nodes: Nodes) -> None:
        shape = self.plain.shape
        keys, values = (torch.randn(len(nodes), shape.kv_heads, size) for size in (shape.key_size, shape.value_size))
        for state in (self.plain, self.state):
            state.write(nodes, keys, values)

    def same(self, spec: AttentionSpec, pool: ThreadPoolExecutor, threads: int) -> None:
        query = torch.randn(len(self.nodes), 6, self.plain.shape.key_size).to(self.plain.keys.dtype)
        expected = attention.attend(query, self.plain.keys, self.plain.values, self.nodes, spec)
        read = self.store.file.traffic.bytes_read
        found = spilled_attention.attend(query, self.state, self.nodes, spec, pool=pool, threads=threads)
        assert torch.equal(found, expected) and found.dtype == expected.dtype
        seen = 64 + 50 + 8 if spec.window else 0
        assert (self.store.file.traffic.bytes_read > read) or spec.window < seen


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as found:
        yield found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kv_heads", "sizes", "threads"), [(1, (64, 64), 3), (2, (16, 32), 1), (6, (32, 16), 2)])
def test_every_bit_is_that_of_attention_in_memory(
    kv_heads: int, sizes: tuple[int, int], threads: int, dtype: torch.dtype, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:  # fmt: skip
    layer = Layer(tmp_path, kv_heads, sizes, dtype, threads)
    assert layer.state.bases[0] > 2000 and layer.state.bases[1] == 0
    layer.same(AttentionSpec(0.2), pool, threads)
    layer.same(AttentionSpec(0.2, window=1700, softcap=6.0), pool, threads)
    layer.same(AttentionSpec(0.2, window=20, sinks=torch.randn(6)), pool, threads)
    layer.same(AttentionSpec(0.2, sinks=torch.randn(6)), pool, threads)
    layer.store.file.close()


def test_a_pass_reads_each_key_and_value_once(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    layer = Layer(tmp_path, 2, (16, 16), torch.bfloat16, 2)
    before = layer.store.file.traffic.bytes_read
    layer.same(AttentionSpec(0.2), pool, 2)
    assert layer.store.file.traffic.bytes_read - before == layer.state.bases[0] * layer.plain.shape.numbers * 2
    layer.store.file.close()

"""Keys and values in a file are those that memory would hold, whatever is written, kept, taken back and copied."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import generated, opened, save
from understudy import LLM, SamplingParams
from understudy.cache import Cache
from understudy.drawable import plan_for
from understudy.errors import UsageError
from understudy.layer_states import LayerShape
from understudy.options import Options
from understudy.spilled import CHUNK, FIRST, LATEST, STEP, Spill, SpilledState, fast_slots, heads_together, spillable
from understudy.tiers import ReadSettings
from understudy.tree import Nodes, TokenTree

SHAPES = (LayerShape(2, 16, 32), LayerShape(2, 16, 32), LayerShape(1, 24, 16, latent=True))
ROWS, CAPACITY = 2, 3072
LONG = torch.randint(1, 256, (1100,), generator=torch.Generator().manual_seed(3)).tolist()


class Pair:
    """A cache that spills and one that does not, which are told the same."""

    def __init__(self, directory: Path) -> None:
        spill = Spill(directory, ReadSettings(1 << 16, 2), latest=64, threads=2)
        self.spilling = Cache(SHAPES, ROWS, CAPACITY, torch.float32, spill=spill)
        self.plain = Cache(SHAPES, ROWS, CAPACITY, torch.float32)
        self.random = torch.Generator().manual_seed(5)

    def write(self, nodes: Nodes) -> None:
        for cache in (self.plain, self.spilling):
            cache.begin_pass(nodes)
        for index, shape in enumerate(SHAPES):
            keys = torch.randn(len(nodes), shape.kv_heads, shape.key_size, generator=self.random)
            values = torch.randn(len(nodes), shape.kv_heads, shape.value_size, generator=self.random)
            values = keys[..., : shape.value_size] if shape.latent else values
            for start in range(0, len(nodes), 32):
                part = slice(start, start + 32)
                for cache in (self.plain, self.spilling):
                    cache.write(index, nodes[part], None, keys[part], values[part])

    def read(self, row: int, tokens: int) -> None:
        """A chunk of a prompt."""
        self.write(Nodes.of(TokenTree.chain([1] * tokens), row, self.plain.lengths[row]))
        self.keep(row, list(range(tokens)))

    def draft(self, row: int) -> None:
        """A tree, of which one branch is kept."""
        tree = TokenTree.of([1] * 6, [-1, 0, 0, 1, 2, 4])
        self.write(Nodes.of(tree, row, self.plain.lengths[row]))
        self.keep(row, [0, 2, 4, 5])

    def keep(self, row: int, path: list[int]) -> None:
        for cache in (self.plain, self.spilling):
            cache.keep(row, torch.tensor(path))

    def check(self) -> None:
        assert self.plain.lengths == self.spilling.lengths
        for row, length in enumerate(self.plain.lengths):
            for index in range(len(SHAPES)):
                expected = self.plain.layers[index].taken(row, 0, length)
                found = self.spilling.layers[index].taken(row, 0, length)
                assert all(torch.equal(found[name], expected[name]) for name in expected), f"row {row} of {length} tokens"


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    found = Pair(tmp_path)
    yield found
    found.spilling.close()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(0, 1), st.integers(1, 900)),
        st.tuples(st.just("draft"), st.integers(0, 1), st.just(0)),
        st.tuples(st.just("rewind"), st.integers(0, 1), st.integers(0, 100)),
        st.tuples(st.just("copy"), st.integers(0, 1), st.integers(0, 100)),
    ),
    min_size=2, max_size=8,
)  # fmt: skip


@settings(max_examples=15)
@given(STEPS)
def test_a_text_is_as_in_memory(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]) -> None:
    pair = Pair(tmp_path_factory.mktemp("spill"))
    for what, row, number in steps:
        length = pair.plain.lengths[row]
        if what == "read" and length + number < CAPACITY - 320:
            pair.read(row, number)
        elif what == "draft" and length:
            pair.draft(row)
        elif what == "rewind":
            reached = {cache.rewind(row, length * number // 100) for cache in (pair.plain, pair.spilling)}
            assert len(reached) == 1
        elif what == "copy":
            assert len({cache.copy(row, 1 - row, length * number // 100) for cache in (pair.plain, pair.spilling)}) == 1
        pair.check()
    pair.spilling.close()


def test_old_tokens_leave_memory_and_come_back(pair: Pair) -> None:
    pair.read(0, 2000)
    state = pair.spilling.spilled
    assert state is not None and state.bases[0] == (2000 - 64 - FIRST) // STEP * STEP
    assert pair.spilling.spill_store is not None
    file = pair.spilling.spill_store.file
    assert file.bytes_written == state.bases[0] * 4 * (2 * 2 * (16 + 32) + 24), "each token of all layers once"
    assert pair.spilling.layers[0].keys.shape[2] == fast_slots(64) < 2000
    read = file.traffic.bytes_read
    pair.spilling.rewind(0, 1000)
    pair.plain.rewind(0, 1000)
    assert file.traffic.bytes_read > read and state.bases[0] == state.base_for(1000)
    pair.check()


def test_prefixes_pass_between_caches(pair: Pair) -> None:
    pair.read(0, 1500)
    blocks = [pair.plain.layers[0].taken(0, start, start + 300) for start in range(0, 1500, 300)]
    state = pair.spilling.layers[0]
    for number, block in enumerate(blocks):
        state.put(1, 300 * number, block, 300 * number)
    state.resume(1, 1500, {})
    assert all(torch.equal(state.taken(1, 0, 1500)[name], pair.plain.layers[0].taken(0, 0, 1500)[name]) for name in blocks[0])
    assert pair.spilling.block_bytes(64) == pair.plain.block_bytes(64) and not pair.spilling.needs_points


def test_a_draft_sees_a_shorter_text(pair: Pair) -> None:
    pair.read(1, 1500)
    state = pair.spilling.spilled
    assert isinstance(state, SpilledState)
    nodes = Nodes.of(TokenTree.of([1] * 4, [-1, 0, 0, 1]), 1, 1500)
    short = state.local(nodes)
    base = state.bases[1]
    assert base and torch.equal(short.positions, nodes.positions - base) and short.last < fast_slots(64)
    assert torch.equal(short.slots_in_order(3), torch.cat([torch.arange(1500 - base), nodes.slots_in_order(3)[1500:] - base]))
    assert torch.equal(state.keys[1, :, : FIRST], pair.plain.layers[0].keys[1, :, :FIRST]), "the beginning stays"
    assert state.local(short_text := Nodes.of(TokenTree.chain([1]), 0, 0)) is short_text


def test_what_spills() -> None:
    assert spillable(LayerShape(1, 64, 64), 2) and not spillable(LayerShape(1, 64, 64, window=512), 2)
    assert spillable(LayerShape(1, 64, 64, window=512, shared=True), 2), "it holds all tokens"
    assert not spillable(LayerShape(1, 4, 4), 2), "a step is no whole page"
    assert not spillable(LayerShape(1, 64, 64, reads=0), 2)
    assert [heads_together(8, threads) for threads in (1, 2, 3, 8, 64)] == [1, 2, 2, 8, 8] and heads_together(3, 2) == 1
    assert CHUNK % STEP == 0 == STEP % 64 and fast_slots(LATEST) % 64 == 0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spill") / "model"
    save(path, "llama", torch.bfloat16, max_position_embeddings=65536)
    return path


PARAMS = SamplingParams(max_new_tokens=40, ignore_eos=True, temperature=0.8, seed=4)


def texts(path: Path, **options: object) -> tuple[list[list[int]], LLM]:
    """Two texts together, one that spills and a short one; and what made them."""
    with opened(path, context=1400, rows=2, **options) as llm:
        prompts = [LONG, LONG[:700] + [7] * 9]
        found = [result.token_ids for result in llm.generate(prompts, PARAMS)]
        return found, llm


def test_the_text_is_the_same_where_keys_and_values_spill(model: Path) -> None:
    expected, _ = texts(model, spill="none")
    drafted, llm = texts(model, spill=64)
    plain, alone = texts(model, spill=64, method="none")
    assert drafted == plain == expected
    for one in (llm, alone):
        store = one.model.cache.spill_store
        assert store is not None and store.file.bytes_written > 0 and store.file.traffic.bytes_read > 0
        assert "up to" in "\n".join(one.plan.lines())


def test_float32_text_is_that_of_transformers(tmp_path: Path) -> None:
    stock = save(tmp_path, "qwen3", torch.float32, max_position_embeddings=2048, num_hidden_layers=2)
    with opened(tmp_path, context=1400, spill=64) as llm:
        found = llm.generate([LONG], SamplingParams(max_new_tokens=12, ignore_eos=True, temperature=0))[0].token_ids
        store = llm.model.cache.spill_store
        assert store is not None and store.file.traffic.bytes_read > 0
    assert found == generated(stock, LONG, 12)


def test_rows_go_on_and_go_back_where_keys_and_values_spill(model: Path) -> None:
    """A second turn reads only what is new, in the row and in a copy of it, and a shorter beginning is taken back."""
    turn = [*LONG, *[9] * 8]
    asked = [LONG, turn, LONG[:900], [*LONG[:1000], 5, 6]]
    found = []
    for spill in ("none", 64):
        with opened(model, context=1400, rows=2, spill=spill) as llm:
            done = [llm.generate([prompt], PARAMS)[0] for prompt in asked]
            found.append([(one.token_ids, one.stats.cached_tokens) for one in done])
    assert found[0] == found[1]
    assert found[0][1][1] > 1000, "the second turn reads all of it again"


def test_a_context_that_does_not_fit_spills_by_itself(model: Path) -> None:
    asked = {"memory": "4GiB", "context": 60000, "rows": 1}
    stays, spills = (plan_for(model, Options.of({**asked, "spill": how}, os.environ)) for how in ("none", LATEST))
    assert stays.spill_latest == 0 and spills.spill_latest == LATEST
    assert spills.spilled_bytes == 3 * 2 * 32 * 2 * (60000 - LATEST)
    # what a plan does by itself, it counts as the smallest
    assert plan_for(model, Options.of(asked, os.environ)).least_bytes == spills.least_bytes < stays.least_bytes
    asked["memory"] = (spills.least_bytes + stays.least_bytes) // 2
    with pytest.raises(UsageError, match="too small"):
        opened(model, **asked, spill="none")
    # Half of what the smallest plan leaves holds more tokens than it must.
    with opened(model, **asked) as llm:
        assert 10000 < llm.plan.spill_latest < 40000 and llm.plan.used <= asked["memory"]
        assert llm.model.cache.nbytes <= llm.plan.items["KV cache"] < stays.items["KV cache"] * 0.7
        assert llm.model.cache.spilled.keys.shape[2] == fast_slots(llm.plan.spill_latest)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spill": 63}, "--spill must be auto, none or a number of tokens, 64 or more, got 63"),
        ({"spill": "often"}, "--spill must be auto, none or a number"),
        ({"spill": 64, "policy": "eqspec"}, "--spill is not for left-padded batches"),
    ],
)
def test_bad_options_are_one_line(model: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        opened(model, **options)
    assert "\n" not in str(error.value)


def test_what_cannot_spill_says_so(tmp_path: Path) -> None:
    save(tmp_path, "mistral", torch.bfloat16)
    with pytest.raises(UsageError, match="--spill 64: keys and values cannot spill here"):
        opened(tmp_path, spill=64)

"""A text whose beginning some cache row holds does not read it again, and has the bits that it has alone."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.test_engine import Guessing, Slab, following
from tests.tiny import save
from understudy import LLM, SamplingParams, reuse
from understudy.engine import Choose, Engine
from understudy.prefixes.disk import DiskPrefixes
from understudy.reuse import KeptText, Prefix, common_prefix, longest, row_for
from understudy.sequence import TokenSequence
from understudy.tree import Nodes

TOKENS = st.lists(st.integers(0, 1), max_size=40)
# Windows and shared keys, recurrent layers, and both kinds in one layer.
FAMILIES = ["gemma4-e", "qwen3_5_text", "falcon_h1"]


@given(TOKENS, TOKENS, st.integers(1, 5))
def test_a_common_prefix_is_as_long_as_it_can_be(first: list[int], second: list[int], compared: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reuse, "COMPARED", compared)
        length = common_prefix(first, second)
    assert first[:length] == second[:length]
    assert length == min(len(first), len(second)) or first[length] != second[length]


@given(st.lists(TOKENS, max_size=4), TOKENS, st.integers(0, 20))
def test_the_row_that_can_give_most_is_found(held: list[list[int]], text: list[int], loses: int) -> None:
    def reach(row: int, length: int) -> int:
        return length if row % 2 or length > loses else 0

    found = longest(enumerate(held), text, reach)
    best = max((reach(row, common_prefix(tokens, text)) for row, tokens in enumerate(held)), default=0)
    assert (found.length if found else 0) == best
    assert found is None or found == Prefix(found.row, reach(found.row, common_prefix(held[found.row], text)))


def test_the_row_of_least_loss_is_taken() -> None:
    long, other = list(range(300)), list(range(1000, 1300))
    kept = {2: KeptText(other, 300), 0: KeptText([*long, 7, 7], 280)}
    assert row_for([*long, 9], [0, 1, 2], kept) == 0, "it goes on where it is"
    assert row_for([*long[:150], 9], [0, 1, 2], kept) == 1, "a conversation would be lost"
    assert row_for([*long[:150], 9], [0, 2], kept) == 2, "what was left first goes first"
    assert row_for([*long[:150], 9], [0], kept) == 0
    assert row_for([*long, 9], [0, 1, 2], kept, elsewhere=300) == 0, "moving no bytes is better"
    assert row_for([*long, 9], [0, 1, 2], kept, elsewhere=301) == 1, "another row gives more"
    assert row_for([5], [1, 2], kept) == 1 and row_for([5], [2], kept) == 2


class Reading:
    """An engine on a model that is a function of the text; it counts the nodes of its passes."""

    def __init__(self, rows: int, seed: int, most: int = 1 << 20):
        self.slab = Slab(rows)
        self.engine = Engine(self.verify, self.slab, Guessing(seed, nodes=8), most)
        self.nodes = 0

    def verify(self, nodes: Nodes, wanted: Tensor, choose: Choose) -> tuple[Tensor, None]:
        self.nodes += len(nodes)
        return self.slab.verify(nodes, wanted, choose)

    def admit(self, tokens: Sequence[int], count: int = 3) -> TokenSequence:
        taken = {sequence.row for sequence in self.engine.sequences}
        free = [row for row in range(self.slab.rows) if row not in taken]
        sequence = TokenSequence(-1, list(tokens), SamplingParams(max_new_tokens=count))
        sequence.row = self.engine.row_for(tokens, free)
        return self.engine.admit(sequence)


def continued(prompt: Sequence[int], count: int) -> list[int]:
    text = list(prompt)
    while len(text) < len(prompt) + count:
        text.append(following(text))
    return text


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 40), st.integers(30, 70), st.booleans())
def test_whoever_shares_a_beginning_with_whom_no_token_changes(
    seed: int, rows: int, waiting: int, most: int, cancels: bool
) -> None:
    """Texts that part at random places come, end and are cancelled at random moments."""
    chance = random.Random(seed)
    stem = [chance.randrange(7) for _ in range(90)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reuse, "WORTH_WAITING", waiting)
        patch.setattr(reuse, "WORTH_KEEPING", chance.randrange(60))
        world = Reading(rows, seed, most)
        done: list[TokenSequence] = []
        left = 8
        while left or world.engine.sequences:
            while left and len(world.engine.sequences) < rows and chance.random() < 0.7:
                prompt = stem[: chance.randrange(91)] + [chance.randrange(7) for _ in range(1 + chance.randrange(9))]
                done.append(world.admit(prompt, 1 + chance.randrange(12)))
                left -= 1
            if world.engine.sequences:
                assert world.engine.step(), "a pass without anybody"
            if cancels and world.engine.sequences and chance.random() < 0.2:
                world.engine.release(chance.choice(world.engine.sequences))
    for sequence in done:
        assert sequence.tokens == continued(sequence.tokens[: sequence.prompt_length], sequence.produced)
        assert sequence.reused < sequence.prompt_length and sequence.read_again == 0


def test_a_running_row_gives_what_it_holds() -> None:
    stem = [(i * i) % 7 for i in range(100)]
    world = Reading(3, 1)
    first = world.admit(stem, 30)
    world.engine.step()
    before = world.nodes
    second = world.admit([*stem[:90], 6, 6], 30)
    assert second.reused == 0 and first.row != second.row
    (read,) = [advance for advance in world.engine.step() if advance.sequence is second]
    assert second.reused == 90 and read.nodes == 2 and world.nodes - before < 2 + 9
    while world.engine.sequences:
        world.engine.step()
    assert first.tokens == continued(stem, 30) and second.tokens == continued([*stem[:90], 6, 6], 30)


@pytest.mark.parametrize("most", [1000, 40])
def test_equal_prompts_are_read_once(most: int) -> None:
    prompt = [(i * i + i // 3) % 7 for i in range(200)]
    world = Reading(4, 1, most)
    sequences = [world.admit(prompt, 1) for _ in range(4)]
    while world.engine.sequences:
        world.engine.step()
    reused = [sequence.reused for sequence in sequences]
    assert world.nodes + sum(reused) == 4 * 200 and reused[0] == 0
    # In a small pass, the others join the first one in reading the end.
    assert reused[1:] == [199] * 3 if most > 200 else min(reused[1:]) > 100
    assert all(sequence.tokens == continued(prompt, 1) for sequence in sequences)


def test_short_prompts_wait_for_nobody() -> None:
    world = Reading(3, 1)
    for _ in range(3):
        world.admit([1, 2, 3, 4], 1)
    world.engine.step()
    assert world.nodes == 12 and not world.engine.sequences


def test_who_waited_for_a_prompt_reads_on_when_it_is_cancelled() -> None:
    prompt = [(i * i + i // 3) % 7 for i in range(200)]
    world = Reading(2, 1, 50)
    first, second = world.admit(prompt, 2), world.admit(prompt, 2)
    world.engine.step()
    world.engine.release(first)
    while world.engine.sequences:
        world.engine.step()
    assert second.tokens == continued(prompt, 2) and second.reused == 50


def test_a_text_may_say_how_much_of_it_is_taken_over() -> None:
    stem = [(i * i) % 7 for i in range(200)]
    world = Reading(3, 1)
    world.admit(stem, 1)
    world.engine.step()
    for reusable, reused in ((0, 0), (20, 20), (None, 199)):
        sequence = TokenSequence(2, list(stem), SamplingParams(max_new_tokens=1), reusable=reusable)
        world.engine.admit(sequence)
        world.engine.step()
        assert sequence.reused == reused
        assert sequence.tokens == continued(stem, 1)


class Logits:
    """The logits after each accepted token, by the text that they follow."""

    def __init__(self, llm: LLM):
        self.llm, self.found, self.read = llm, {}, 0
        self.verify = llm.engine.verify
        llm.engine.verify = self.noting

    def noting(self, nodes: Nodes, wanted: Tensor, choose: Choose) -> tuple[Tensor, Tensor | None]:
        self.read += len(nodes)
        texts = {sequence.row: sequence.tokens for sequence in self.llm.engine.sequences}

        def noted(logits: Tensor, start: int) -> Tensor:
            for place, node in enumerate(wanted[start : start + len(logits)].tolist()):
                text = tuple(texts[int(nodes.rows[node])][: int(nodes.positions[node]) + 1])
                self.found.setdefault(text, set()).add(logits[place].float().numpy().tobytes())
            return choose(logits, start)

        return self.verify(nodes, wanted, noted)


@pytest.fixture(scope="module", params=FAMILIES)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param) / "model"
    save(path, request.param, torch.bfloat16, max_position_embeddings=2048)
    return path


@pytest.fixture(scope="module")
def llm(place: Path) -> Iterator[LLM]:
    with LLM(place, method="none", resident="none", memory="1GiB", context=1536, rows=3) as llm:
        yield llm


def texts(seed: int) -> list[list[int]]:
    """Prompts that part from one another at random places, short and longer than a window and its spare room."""
    chance = random.Random(seed)
    stem = [chance.randrange(1, 255) for _ in range(chance.choice([40, 150, 700]))]
    cut = [len(stem), len(stem), chance.randrange(len(stem)), max(len(stem) - chance.randrange(1, 20), 1)]
    return [stem[:length] + [chance.randrange(1, 255) for _ in range(chance.randrange(1, 4))] for length in cut]


@pytest.mark.parametrize("seed", range(3))
def test_logits_of_copied_beginnings_have_the_bits_of_read_ones(llm: LLM, seed: int) -> None:
    prompts = texts(seed)
    params = SamplingParams(max_new_tokens=8, ignore_eos=True)
    apart, shared = Logits(llm), None
    for prompt in prompts:
        request = llm.request(prompt, params)
        request.sequence.reusable = 0
        llm.scheduler.complete([request])
        assert request.sequence.reused == 0
    llm.engine.verify = apart.verify
    for row in range(3):
        llm.engine.forget(row)
    shared = Logits(llm)
    requests = [llm.request(prompt, params) for prompt in prompts]
    llm.scheduler.complete(requests)
    llm.engine.verify = shared.verify
    assert shared.found == apart.found and all(len(bits) == 1 for bits in apart.found.values())
    assert sum(request.sequence.reused for request in requests) > 0
    assert shared.read < apart.read


def test_logits_of_beginnings_from_disk_have_the_bits_of_read_ones(llm: LLM, tmp_path: Path) -> None:
    stem = texts(2)[0]
    stem = [*stem, *range(1, 200), *range(1, 200), *range(1, 200), *range(1, 200)][:730]
    prompts = [[*stem, *(i * part % 199 + part for i in range(90))] for part in (1, 2, 3)]
    params = SamplingParams(max_new_tokens=8, ignore_eos=True)
    apart = Logits(llm)
    for prompt in prompts:
        request = llm.request(prompt, params)
        request.sequence.reusable = 0
        llm.scheduler.complete([request])
    llm.engine.verify = apart.verify
    loaded = []
    shared = Logits(llm)
    for prompt in (*prompts, prompts[1]):
        for row in range(3):
            llm.engine.forget(row)
        # As a new process would open them.
        llm.engine.prefixes = DiskPrefixes.open(tmp_path, 1 << 30, "12" * 32, llm.model.cache)
        request = llm.request(prompt, params)
        llm.scheduler.complete([request])
        llm.engine.prefixes.close()
        loaded.append(request.sequence.loaded)
    llm.engine.verify, llm.engine.prefixes = shared.verify, None
    assert loaded == [0, 0, 704, 768], "the third finds what the second left where the first two part"
    assert shared.found == apart.found and shared.read < apart.read


@pytest.mark.parametrize("method", ["substitute", "classic"])
def test_a_second_text_drafts_on_what_was_copied(tmp_path: Path, method: str) -> None:
    save(tmp_path / "model", "gemma3_text", torch.bfloat16, max_position_embeddings=2048)
    prompts = [[*range(1, 200), *range(1, 100), last] for last in (3, 7, 9)]
    params = [SamplingParams(max_new_tokens=20, ignore_eos=True, temperature=t, seed=5) for t in (0.0, 0.7, 0.0)]
    options: dict[str, Any] = {"resident": "none", "memory": "1GiB", "context": 1024, "rows": 3}
    with LLM(tmp_path / "model", method="none", **options) as llm:
        plain = [llm.generate(prompt, own)[0].token_ids for prompt, own in zip(prompts, params, strict=True)]
    method = f"classic:{tmp_path / 'model'}" if method == "classic" else method
    with LLM(tmp_path / "model", method=method, **options) as llm:
        requests = [llm.request(prompt, own) for prompt, own in zip(prompts, params, strict=True)]
        llm.scheduler.complete(requests)
        if llm.model.companion is not None:
            lengths = llm.model.companion.cache.lengths
            assert min(lengths) >= 298, lengths
    assert [request.completion().token_ids for request in requests] == plain
    assert [request.sequence.reused for request in requests] == [0, 298, 298]
    assert all(request.meter.stats().accepted > 0 for request in requests)

"""A new process reads again nothing of what is on disk, and no file, whatever it holds, changes a token."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.test_engine import Guessing, following
from understudy.cache import Cache
from understudy.engine import Choose, Engine
from understudy.layer_states import LayerShape, SlidingState
from understudy.params import SamplingParams
from understudy.prefixes import BLOCK, LEAST
from understudy.prefixes.disk import DiskPrefixes, TextBlocks
from understudy.sequence import TokenSequence
from understudy.tree import Nodes

IDENTITY = "5a" * 32
LIMIT = 1 << 24


class Process:
    """An engine on a model that is a function of the text, as a process has it; its prefixes are in a directory.

    Keys are tokens. `window`: a second layer that slides, whose keys must be those of the first."""

    def __init__(self, directory: Path, seed: int = 1, window: int = 0, limit: int = LIMIT, rows: int = 2):
        shapes = [LayerShape(1, 1, 1), *([LayerShape(1, 1, 1, window)] if window else [])]
        self.cache = Cache(shapes, rows, 2048, torch.float32)
        assert not window or isinstance(self.cache.layers[1], SlidingState)
        self.window = window
        self.prefixes = DiskPrefixes.open(directory, limit, IDENTITY, self.cache)
        self.engine = Engine(self.verify, self.cache, Guessing(seed, nodes=8), 700, prefixes=self.prefixes)
        self.read = 0

    def verify(self, nodes: Nodes, wanted: Tensor, choose: Choose) -> tuple[Tensor, None]:
        self.read += len(nodes)
        self.cache.begin_pass(nodes)
        for layer in self.cache.layers:
            layer.write(nodes, nodes.tokens.float()[:, None, None], nodes.tokens.float()[:, None, None])
        logits = torch.zeros(len(wanted), 7)
        for place, node in enumerate(wanted.tolist()):
            row, slots = int(nodes.rows[node]), nodes.slots_in_order(node)
            seen = self.cache.layers[0].keys[row, 0, slots, 0]
            if self.window:
                last = slots[-self.window :]
                held = self.cache.layers[1].keys[row, 0, self.cache.layers[1].places(last), 0]
                assert torch.equal(held, seen[-self.window :]), "the window is not that of the text"
            logits[place, following([int(token) for token in seen])] = 1
        return choose(logits, 0) if len(wanted) else wanted, None

    def run(self, *prompts: Sequence[int], count: int = 3) -> list[TokenSequence]:
        sequences = []
        for prompt in prompts:
            sequence = TokenSequence(-1, list(prompt), SamplingParams(max_new_tokens=count))
            taken = {other.row for other in self.engine.sequences}
            sequence.row = self.engine.row_for(prompt, [row for row in range(self.cache.rows) if row not in taken])
            sequences.append(self.engine.admit(sequence))
            self.engine.step()
        while self.engine.sequences:
            self.engine.step()
        self.prefixes.writer.flush()
        for sequence in sequences:
            expected = sequence.tokens[: sequence.prompt_length]
            while len(expected) < len(sequence.tokens):
                expected.append(following(expected))
            assert sequence.tokens == expected and sequence.produced == count
        return sequences


def text(seed: int, length: int) -> list[int]:
    chance = random.Random(seed)
    return [chance.randrange(7) for _ in range(length)]


@pytest.mark.parametrize("window", [0, 20])
def test_a_restart_reads_no_prompt_again(tmp_path: Path, window: int) -> None:
    prompt = text(1, 1000)
    first = Process(tmp_path, window=window)
    (cold,) = first.run(prompt)
    again = Process(tmp_path, window=window)
    (warm,) = again.run(prompt)
    assert (cold.reused, cold.loaded) == (0, 0) and warm.tokens == cold.tokens
    assert warm.reused == warm.loaded == 960 and first.read >= 1000
    assert again.read < 40 + 30 and again.engine.clock.passes <= first.engine.clock.passes
    other = DiskPrefixes.open(tmp_path, LIMIT, "6b" * 32, again.cache)
    assert not other._there(TextBlocks("6b" * 32).of(prompt)[0] + ".tokens"), "another model has other names"


def test_short_prompts_and_answers_are_not_kept(tmp_path: Path) -> None:
    first = Process(tmp_path)
    first.run(text(1, LEAST - 1), count=200)
    assert not list(tmp_path.glob("*/*"))
    first.run(text(2, LEAST), count=200)
    assert len(list(tmp_path.glob("*/*"))) == LEAST // BLOCK


@pytest.mark.parametrize("window", [0, 20])
def test_the_place_where_texts_part_is_kept_for_the_third(tmp_path: Path, window: int) -> None:
    stem = text(1, 1200)
    reused = []
    for seed in range(4):
        # Each in a process of its own, so that no row holds anything.
        process = Process(tmp_path, window=window)
        (sequence,) = process.run([*stem, *text(10 + seed, 400)])
        reused.append(sequence.loaded)
    assert reused == ([0, 0, 1152, 1152] if window else [0, 1152, 1152, 1152])


def test_a_window_that_came_from_disk_does_not_go_back_further(tmp_path: Path) -> None:
    stem = text(1, 1000)
    Process(tmp_path, window=20).run(stem)
    process = Process(tmp_path, window=20)
    process.run([*stem, 1, 2])
    (sequence,) = process.run([*stem[:950], 6, 6, 6])
    assert sequence.reused == 0, "slots below the window were never there"
    process.run([*stem[:998], 6, 6, 6])


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from([0, 12]), st.booleans())
def test_whatever_happens_to_files_no_token_changes(
    tmp_path_factory: pytest.TempPathFactory, seed: int, window: int, small: bool
) -> None:
    directory, chance = tmp_path_factory.mktemp("prefixes"), random.Random(seed)
    stem = text(seed, 500)
    limit = 12_000 if small else LIMIT
    process, hits, read_back = Process(directory, seed, window, limit), 0, 0
    for _ in range(5):
        prompts = [stem[: chance.randrange(501)] + text(chance.randrange(99), chance.randrange(1, 90)) for _ in range(2)]
        hits += sum(sequence.loaded for sequence in process.run(*prompts))
        read_back += process.prefixes.files.bytes_read
        for path in directory.glob("*/*"):
            what = chance.random()
            if what < 0.1:
                path.unlink()
            elif what < 0.2:
                content = bytearray(path.read_bytes())
                content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
                path.write_bytes(content)
            elif what < 0.25:
                path.write_bytes(path.read_bytes()[: chance.randrange(99)])
        if chance.random() < 0.7:
            process = Process(directory, seed, window, limit)
    assert not hits or read_back
    assert sum(path.stat().st_size for path in directory.glob("*/*")) <= limit


def test_a_damaged_block_in_the_middle_ends_what_is_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prompt = text(3, 1000)
    Process(tmp_path).run(prompt)
    names = TextBlocks(IDENTITY).of(prompt)
    process = Process(tmp_path)
    path = process.prefixes.files.path(names[5] + ".tokens")
    path.write_bytes(path.read_bytes()[:-1])
    (sequence,) = process.run(prompt)
    assert sequence.loaded == 5 * BLOCK and process.prefixes.files.damaged == 1
    (message,) = caplog.messages
    assert str(path) in message
    assert path.is_file(), "it was written again"
    (sequence,) = Process(tmp_path).run(prompt)
    assert sequence.loaded == 960


def test_what_does_not_fit_at_once_is_handed_over_by_later_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process(tmp_path)
    blocks = process.cache.block_bytes(BLOCK)
    process.prefixes.writer.room = 3 * blocks
    flush = process.prefixes.writer.flush
    keep = process.prefixes.keep

    def kept(sequence: TokenSequence) -> None:
        keep(sequence)
        assert process.prefixes.writer._held <= 3 * blocks
        flush()

    monkeypatch.setattr(process.prefixes, "keep", kept)
    process.run(text(1, 640), count=60)
    assert len(list(tmp_path.glob("*/*"))) == 10


def test_a_disk_that_fails_stops_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    process = Process(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        process.run(text(1, 600))
        process.run(text(2, 600))
    assert len(caplog.messages) == 1 and "No space left" in caplog.messages[0]
    assert not list(tmp_path.glob("*/*"))


def test_names_follow_from_all_tokens_before() -> None:
    first, second = text(1, 300), text(1, 300)
    second[70] += 1
    blocks = TextBlocks(IDENTITY)
    assert blocks.of(first[:100]) == TextBlocks(IDENTITY).of(first)[:1]
    names, others = blocks.of(first), TextBlocks(IDENTITY).of(second)
    assert len(names) == 4 and names[0] == others[0] and not {*names[1:]} & {*others[1:]}
    assert not {*names} & {*TextBlocks("00" * 32).of(first)}

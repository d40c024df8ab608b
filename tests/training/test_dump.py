"""Hidden states on disk are those of the model, whatever they were read with, and whatever ended the reading."""

import errno
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import opened, save
from understudy.errors import NumbersError, StoreError
from understudy.training.data import Pieces, cut
from understudy.training.dump import HIDDEN, Dump, DumpSize, PieceReader, reader_of

SIZE = DumpSize((1, -1), 64, torch.float32)


def pieces_of(count: int = 7) -> Pieces:
    generator = torch.Generator().manual_seed(4)
    lengths = [5, 70, 33, 3, 18, 90, 40][:count]
    return cut([(torch.randint(256, (n,), generator=generator).tolist(), [True] * n, n == 33) for n in lengths], 100)


def silent(stage: str, done: float, total: float) -> None: ...


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dumped") / "model"
    save(directory, "llama", torch.float32)
    return directory


def test_hidden_states_are_those_of_the_stock_model(model: Path, tmp_path: Path) -> None:
    pieces = pieces_of()
    stock = save(tmp_path / "again", "llama", torch.float32)
    dump = Dump(tmp_path / "dump", SIZE, {"model": "a"})
    with opened(model, method="none", taps=SIZE.taps, rows=3) as llm:
        dump.fill(pieces, llm.model, silent)
        assert llm.model.ring is not None and llm.model.ring.stats.bytes_read > 0
    for piece, key in enumerate(pieces.keys):
        with torch.no_grad():
            wanted = stock(pieces.tokens[pieces.part(piece)][None], output_hidden_states=True).hidden_states
        torch.testing.assert_close(dump.read(key), torch.stack([wanted[1][0], wanted[-1][0]], 1), rtol=1e-3, atol=1e-3)
    assert not dump.missing(pieces) and (tmp_path / "dump" / HIDDEN).stat().st_size == pieces.edges[-1] * SIZE.token_bytes
    dump.close()


def test_no_bit_depends_on_what_is_read_together(tmp_path: Path) -> None:
    save(tmp_path / "model", "qwen2-window", torch.bfloat16)
    pieces = [(number, text) for number, text in enumerate([[1, 2, 3, 4] * 15, [5, 6], [7] * 33])]
    found: list[dict[int, Any]] = []
    for rows, budget in ((1, "1GiB"), (3, "1GiB"), (2, None)):
        with opened(tmp_path / "model", method="none", taps=(0, 2, -1), rows=rows, **({"memory": budget} if budget else {})) as llm:
            reader = PieceReader(llm.model)
            if budget is None:
                # chunks that end within a piece
                own = partial(getattr, llm.plan)
                llm.model.plan = type("Small", (), {"pass_nodes": 7, "__getattr__": lambda _, name, own=own: own(name)})()
            found.append({number: states for done in reader.states(pieces) for number, states in done})
    for number in range(len(pieces)):
        assert torch.equal(found[0][number], found[1][number]) and torch.equal(found[0][number], found[2][number])


class FakeModel:
    """In the place of a target: hidden states that tell the token and its position."""

    def __init__(self, ends_after: int = 1 << 30):
        self.read = 0
        self.ends_after = ends_after

    def __call__(self, pieces: Any) -> Any:
        for number, tokens in pieces:
            if self.read == self.ends_after:
                raise KeyboardInterrupt
            self.read += 1
            yield [(number, torch.tensor(tokens, dtype=torch.float32)[:, None, None].expand(-1, 2, 64).contiguous())]


def fill(dump: Dump, pieces: Pieces, fake: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PieceReader, "states", lambda _, some: fake(some))
    dump.fill(pieces, None, silent)  # type: ignore[arg-type]


def opened_dump(path: Path, **subject: str) -> Dump:
    return Dump(path, SIZE, {"model": "a", **subject})


def test_what_was_read_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = pieces_of()
    with pytest.raises(KeyboardInterrupt):
        fill(opened_dump(tmp_path), pieces, FakeModel(3), monkeypatch)
    # a kill may leave bytes that no journal knows, and half a line
    with (tmp_path / HIDDEN).open("ab") as file:
        file.write(b"torn")
    with (tmp_path / "journal.jsonl").open("a") as journal:
        journal.write('{"abc": [0, ')
    again, rest = opened_dump(tmp_path), FakeModel()
    assert len(again.missing(pieces)) == 4 and again.missing_bytes(pieces) == sum(map(pieces.length, range(3, 7))) * 512
    fill(again, pieces, rest, monkeypatch)
    assert rest.read == 4
    fewer, third = pieces.limited(10, 1), opened_dump(tmp_path)
    assert not third.missing(pieces) and not third.missing(fewer)
    for piece, key in enumerate(pieces.keys):
        assert torch.equal(third.read(key)[:, 1, 5].long(), pieces.tokens[pieces.part(piece)])
    assert opened_dump(tmp_path, model="another").missing(pieces) == list(range(7))


def test_states_that_were_computed_otherwise_are_others(tmp_path: Path, model: Path) -> None:
    with opened(model, method="none") as llm:
        given: list[dict[str, Any]] = [{}, {"kv_bits": "auto", "dtype": "auto"}, {"kv_bits": 8}, {"dtype": "bfloat16"}]
        plain, same, few, other = (reader_of(llm.store, options) for options in given)
        assert plain == same == {"model": llm.store.source.fingerprint} and plain != few != other != plain
        assert DumpSize.of(llm.store, (1,), {}) == replace(SIZE, taps=(-1, 1))
        assert DumpSize.of(llm.store, (1,), {"dtype": torch.bfloat16}).dtype == torch.bfloat16


def test_what_is_damaged_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = pieces_of()
    fill(opened_dump(tmp_path), pieces, FakeModel(), monkeypatch)
    content = bytearray((tmp_path / HIDDEN).read_bytes())
    content[6 * 512] ^= 1
    (tmp_path / HIDDEN).write_bytes(content)
    again = opened_dump(tmp_path)
    again.check(pieces, silent)
    assert again.missing(pieces) == [1] and opened_dump(tmp_path).missing(pieces) == [1]


def test_a_full_disk_is_told_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = pieces_of()
    write, left = os.pwrite, [20_000]

    def full(file: int, data: Any, offset: int) -> int:
        if left[0] < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= len(data)
        return write(file, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StoreError, match=r"No space left on device\. Free some space, or choose another directory with --dump\."):
        fill(opened_dump(tmp_path), pieces, FakeModel(), monkeypatch)
    monkeypatch.setattr(os, "pwrite", write)
    rest = FakeModel()
    fill(opened_dump(tmp_path), pieces, rest, monkeypatch)
    assert rest.read == 6
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(StoreError, match=r"need 130 KiB more in .* where 100 B are free"):
        opened_dump(tmp_path, model="b").check_space(pieces)


def test_numbers_that_are_none_are_not_learned_from(model: Path) -> None:
    with opened(model, method="none", taps=(-1,)) as llm:
        verify = llm.model.verify
        llm.model.verify = lambda nodes, wanted: (verify(nodes, wanted)[0], torch.full((len(nodes), 1, 64), torch.nan))  # type: ignore
        with pytest.raises(NumbersError, match="NaN or infinity"):
            list(PieceReader(llm.model).states([(0, [1, 2, 3])]))

"""Byte ranges of files become tensors exactly, or an error that names the file."""

from pathlib import Path

import pytest
import torch
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from understudy.errors import StoreError
from understudy.weights import files
from understudy.weights.files import buffer, byte_chunks, checksum, read_bytes, read_tensor


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.binary(max_size=300), offset=st.integers(0, 300), nbytes=st.integers(0, 300), chunk=st.integers(1, 100))
def test_chunks_joined_are_the_range(tmp_path: Path, content: bytes, offset: int, nbytes: int, chunk: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    before = files.CHUNK
    files.CHUNK = chunk
    try:
        if offset + nbytes > len(content) and nbytes:
            with pytest.raises(StoreError, match="ends at byte"):
                list(byte_chunks(path, offset, nbytes, StoreError))
            return
        pieces = list(byte_chunks(path, offset, nbytes, StoreError))
    finally:
        files.CHUNK = before
    assert b"".join(bytes(buffer(piece)) for piece in pieces) == content[offset : offset + nbytes]
    assert all(piece.numel() <= chunk for piece in pieces)


def test_a_tensor_is_read_at_its_place(tmp_path: Path) -> None:
    tensor = torch.arange(12, dtype=torch.int16).view(3, 4)
    (tmp_path / "file").write_bytes(b"abc" + bytes(buffer(tensor)))
    assert torch.equal(read_tensor(tmp_path / "file", 3, torch.int16, (3, 4), StoreError), tensor)
    with pytest.raises(StoreError, match=r"file ends at byte 27 where 28 are needed"):
        read_tensor(tmp_path / "file", 4, torch.int16, (3, 4), StoreError)
    with pytest.raises(StoreError, match=r"nowhere cannot be read: No such file"):
        read_bytes(tmp_path / "nowhere", 0, torch.empty(1, dtype=torch.uint8), StoreError)


def test_a_checksum_runs_over_pieces() -> None:
    whole = torch.arange(10, dtype=torch.uint8)
    assert checksum([whole[:3], whole[3:]]) == checksum([whole]) == xxhash.xxh3_64_hexdigest(bytes(range(10)))

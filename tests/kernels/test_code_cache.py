"""Machine code comes from disk or with the package where it is there and whole; a kernel runs all the same where it is not."""

import inspect
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from understudy.kernels import code_cache, instructions
from understudy.kernels.code_cache import CodeCache
from understudy.kernels.compiled import compiled, on_disk


def made(place: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A kernel as a new process has it, whose own machine code is kept in `place`."""
    monkeypatch.setattr("numba.config.CACHE_DIR", str(place))

    def tripled(number: int) -> int:
        return 3 * number

    return compiled(tripled)


def hits(kernel: Any) -> int:
    return sum(kernel.stats.cache_hits.values())


@pytest.fixture
def ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of machine code that came with the package, which holds that of `made`, for this very processor."""
    place = tmp_path / "ready"
    kernel = made(tmp_path / "first", monkeypatch)
    assert kernel(2) == 6
    (signature,) = kernel.signatures
    codegen = kernel.targetctx.codegen()
    _, cpu, features = codegen.magic_tuple()
    chosen = instructions.InstructionSet("here", "any", cpu, tuple(features.replace("+", "").split(",")), frozenset(), "", "")
    monkeypatch.setattr(instructions.InstructionSet, "llvm_features", features)
    monkeypatch.setattr(instructions, "asked", lambda: None)
    monkeypatch.setattr(instructions, "best", lambda: chosen)
    monkeypatch.setattr(code_cache, "READY", place)
    (place / "here").mkdir(parents=True)
    cache: CodeCache = kernel._cache
    key = cache._index_key(signature, codegen)
    cache.ready_file("here").save(key, cache._cache_file.load(key))
    return place / "here"


def test_a_second_process_finds_what_the_first_one_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = [made(tmp_path, monkeypatch) for _ in range(2)]
    assert [kernel(5) for kernel in kernels] == [15, 15]
    assert [hits(kernel) for kernel in kernels] == [0, 1]


def test_whether_machine_code_is_there_is_found_out_without_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_cache, "READY", tmp_path / "none")
    first, second, third = (made(tmp_path / "code", monkeypatch) for _ in range(3))
    assert on_disk(first) is False
    assert first(5) == 15
    assert on_disk(second) is True and not second.signatures
    # another processor's
    monkeypatch.setattr(first.targetctx.codegen(), "magic_tuple", lambda: ("x86_64", "another", "+avx"))
    assert on_disk(second) is False
    monkeypatch.setattr(third._cache._impl, "_locator", code_cache._Nowhere(third.py_func, "kernel.py"))
    assert on_disk(third) is None
    monkeypatch.setattr(code_cache, "ready_here", lambda: instructions.SETS[0])
    assert on_disk(third) is True


def test_two_processes_that_keep_a_kernel_for_two_signatures_at_once_keep_both_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (made(tmp_path, monkeypatch) for _ in range(2))
    files = first._cache._cache_file
    write = files._save_data

    def later(*given: Any) -> None:
        """Both have seen an empty list when one begins to write; the other has written all that it writes before this one does."""
        with monkeypatch.context() as patch:
            patch.setattr(second._cache._cache_file, "_load_index", dict)
            assert second(0.5) == 1.5
        write(*given)

    monkeypatch.setattr(files, "_save_data", later)
    assert first(5) == 15
    third = made(tmp_path, monkeypatch)
    assert [third(number) for number in (0.5, 5)] == [1.5, 15] and hits(third) == 2


def test_what_came_with_the_package_is_used_where_nothing_was_kept(
    ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = made(tmp_path / "second", monkeypatch)
    assert kernel(4) == 12 and hits(kernel) == 1
    assert not list((tmp_path / "second").rglob("*.nbc")), "it is not kept twice"


@pytest.mark.parametrize("pattern", ["*.nbi", "*.nbc"])
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\x80" + data])
def test_damaged_machine_code_is_as_good_as_none(
    pattern: str, damage: Any, ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [*ready.glob(pattern), *(tmp_path / "first").rglob(pattern)]
    assert len(files) == 2
    for file in files:
        file.write_bytes(damage(file.read_bytes()))
    kernel = made(tmp_path / "first", monkeypatch)
    assert kernel(7) == 21 and hits(kernel) == 0


def test_other_sources_do_not_find_it(ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_cache, "_digest", lambda file: b"of another file")
    kernel = made(tmp_path / "second", monkeypatch)
    assert kernel(4) == 12 and hits(kernel) == 0


def test_a_full_disk_keeps_nothing_and_breaks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = made(tmp_path, monkeypatch)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(kernel._cache._cache_file), "_save_data", full)
    assert kernel(3) == 9
    shutil.rmtree(tmp_path)
    assert made(tmp_path, monkeypatch)(3) == 9


def test_the_package_has_a_place_for_machine_code_that_git_leaves_out() -> None:
    root = Path(inspect.getfile(code_cache)).parents[3]
    if (root / ".gitignore").exists():
        place = os.path.relpath(Path(inspect.getfile(code_cache)).parent / "ready", root)
        assert f"{place}/" in (root / ".gitignore").read_text().splitlines()
        assert place in (root / "pyproject.toml").read_text()

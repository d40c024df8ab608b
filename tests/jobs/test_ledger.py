"""What is done is known from the output alone, wherever it was cut; an output that belongs to something else stays as it is."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.errors import UsageError
from understudy.jobs.ledger import Index, Output
from understudy.jobs.records import BadLine, Line, answered, lines, unread

COUNT = 9


def asked(name: str, prompt: str = "x") -> str:
    return json.dumps({"custom_id": name, "method": "POST", "url": "/v1/completions", "body": {"prompt": prompt}})


def written(path: Path, *texts: str) -> Path:
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    """Every third line asks for nothing that can be done."""
    return written(tmp_path / "in.jsonl", *(asked(f"r{n}") if n % 3 else "nonsense" for n in range(COUNT)))


def index_of(path: Path) -> Index:
    with path.open("rb") as file:
        return Index.of(file, lambda done, total: None)


def record(line: Line) -> dict[str, Any]:
    return unread(line, line.asked) if isinstance(line.asked, BadLine) else answered(line, {"model": "tiny", "n": line.number})


def answer(requests: Path, path: Path, most: int = COUNT, **options: Any) -> int:
    """Answer `most` of the lines that are left; the number of lines that were there before."""
    output = Output(path, index_of(requests), "tiny", options.get("overwrite", False))
    try:
        before = output.finished
        with requests.open("rb") as file:
            for line in [line for line in lines(file) if not output.holds(line)][:most]:
                output.append(record(line))
        assert output.finished == before + min(most, COUNT - before)
        return before
    finally:
        output.close()


@settings(max_examples=20)
@given(cuts=st.lists(st.tuples(st.integers(0, COUNT), st.integers(0, 400)), max_size=6))
def test_wherever_it_is_cut_every_line_has_one_record_in_the_end(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    requests = written(folder / "in.jsonl", *(asked(f"r{n}") if n % 3 else "nonsense" for n in range(COUNT)))
    path = folder / "out.jsonl"
    for most, lost in cuts:
        answer(requests, path, most)
        os.truncate(path, max(path.stat().st_size - lost, 0))
    answer(requests, path)
    found = [json.loads(text) for text in path.read_text().splitlines()]
    numbers = sorted(record["error"]["line"] if record["error"] else record["response"]["body"]["n"] for record in found)
    assert numbers == list(range(1, COUNT + 1))


def test_failures_of_earlier_runs_are_counted(requests: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    assert answer(requests, path, 4) == 0 and answer(requests, path) == 4
    output = Output(path, index_of(requests), "tiny", overwrite=False)
    assert (output.finished, output.failed) == (COUNT, 3) and output.done.all()
    output.close()


def test_a_custom_id_that_stands_twice_is_refused_with_its_lines(tmp_path: Path) -> None:
    requests = written(tmp_path / "in.jsonl", "", asked("a"), "{}", asked("b"), "{}", asked("a", "another"))
    with pytest.raises(UsageError, match=r"^A line has .* of an earlier one: 'a' in lines 2, 6\. [^\n]*nothing was answered\.$"):
        index_of(requests)


def test_of_many_custom_ids_that_stand_twice_some_are_told_and_all_are_counted(tmp_path: Path) -> None:
    """So that a file is mended once, and not once for each of them."""
    names = [name for name in "abcdefg" for _ in range(7 if name == "b" else 2)]
    requests = written(tmp_path / "in.jsonl", *map(asked, names), asked("once"))
    with pytest.raises(UsageError) as error:
        index_of(requests)
    assert str(error.value).startswith(
        "12 lines have the custom_id of an earlier line: 'a' in lines 1, 2; 'b' in lines 3, 4, 5, 6, 3 more; "
        "'c' in lines 10, 11; 'd' in lines 12, 13; 3 more. Give each line its own"
    )


def test_an_output_of_something_else_is_refused_and_left_alone(requests: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    answer(requests, path, 5)
    index, good = index_of(requests), path.read_text()
    first = good.splitlines()[1]
    cases = (
        (asked("r1"), "Line 1 of .* answers no line"),
        ("some text without an end", "answers no line"),
        (good + "\n", "Line 6 of .* answers no line"),
        (good + first + "\n", "answered before"),
        (good.replace('"r1"', '"r77"'), "Line 2 of .* answers no line"),
        (first.replace('"tiny"', '"large"') + "\n", "by the model 'large', not 'tiny'"),
        (json.dumps({**json.loads(first), "id": "batch_req_x"}) + "\n", "has changed since"),
        (json.dumps({**json.loads(first), "id": 5}) + "\n", "has changed since"),
    )
    for text, says in cases:
        path.write_text(text)
        with pytest.raises(UsageError, match=says):
            Output(path, index, "tiny", overwrite=False)
        assert path.read_text() == text
    Output(path, index, "tiny", overwrite=True).close()
    assert path.read_text() == ""


def test_a_line_that_has_changed_since_is_not_taken_for_done(requests: Path, tmp_path: Path) -> None:
    answer(requests, tmp_path / "out.jsonl")
    changed = requests.with_name("changed.jsonl")
    changed.write_text(requests.read_text().replace(asked("r4"), asked("r4", "other")))
    with pytest.raises(UsageError, match="'r4' has changed since"):
        Output(tmp_path / "out.jsonl", index_of(changed), "tiny", overwrite=False)


def test_one_process_writes_at_a_time(requests: Path, tmp_path: Path) -> None:
    first = Output(tmp_path / "out.jsonl", index_of(requests), "tiny", overwrite=False)
    with pytest.raises(UsageError, match="Another process"):
        Output(tmp_path / "out.jsonl", index_of(requests), "tiny", overwrite=True)
    first.close()
    Output(tmp_path / "out.jsonl", index_of(requests), "tiny", overwrite=False).close()


def test_what_can_be_no_output_is_refused(requests: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, says in ((tmp_path, "Is a directory"), (tmp_path / "no" / "out", "No such file"), (tmp_path / "pipe", "is no file")):
        with pytest.raises(UsageError, match=says):
            Output(path, index_of(requests), "tiny", overwrite=False)


def test_a_full_disk_ends_the_run_and_loses_nothing(requests: Path, tmp_path: Path) -> None:
    """A limit on the size of files cuts a record."""
    path = tmp_path / "out.jsonl"
    answer(requests, path, 2)
    size = path.stat().st_size
    # In a process of its own, as the limit holds for the whole process.
    code = f"""
import resource, signal, sys
from pathlib import Path
from tests.jobs.test_ledger import answer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({size + 100}, {resource.RLIM_INFINITY}))
try:
    answer(Path({str(requests)!r}), Path({str(path)!r}))
except Exception as error:
    print(type(error).__name__, error)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.startswith("UnderstudyError Cannot write"), done.stderr
    assert path.stat().st_size == size + 100
    assert answer(requests, path) == 2


def test_a_line_of_the_input_takes_few_bytes(tmp_path: Path) -> None:
    index = index_of(written(tmp_path / "in.jsonl", *(asked(f"r{n}", "word " * 99) for n in range(3000))))
    assert index.keys.nbytes + index.ids.nbytes == 32 * 3000 and len(index) == 3000


def test_reading_the_input_is_told(requests: Path) -> None:
    told: list[tuple[int, int]] = []
    with requests.open("rb") as file:
        Index.of(file, lambda *said: told.append(said))
    assert len(told) == COUNT and told[-1] == (requests.stat().st_size,) * 2

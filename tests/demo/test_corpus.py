"""The corpus leaves out tests and tables, and keeps the same files apart everywhere."""

import json
from pathlib import Path

import torch

from understudy.demo.corpus import documents, is_held_out, standard_library, write_records
from understudy.demo.text import END, VOCABULARY, batches, encode, train_tokenizer


def test_tests_tables_and_broken_files_are_left_out(tmp_path: Path) -> None:
    kept = {"a.py": "def f(x):\n    return x\n", "package/b.py": "import os\nprint(os.name)\n"}
    dropped = {
        "test/c.py": "import os\n",
        "package/tests/d.py": "import os\n",
        "table.py": f"numbers = {list(range(100))}\n",
        "broken.py": "def (:\n",
        "site-packages/e.py": "import os\n",
        "empty.py": "\n",
    }
    for name, text in (kept | dropped).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9\n")
    assert {document.name: document.text for document in documents(tmp_path)} == kept


def test_held_out_files_are_few_and_decided_by_their_path() -> None:
    names = [file.relative_to(standard_library()).as_posix() for file in standard_library().rglob("*.py")][:2000]
    share = sum(map(is_held_out, names)) / len(names)
    assert 0.01 < share < 0.08
    assert is_held_out("sched.py")
    assert not is_held_out("os.py")


def test_tokenizer_loses_nothing_and_knows_indentation() -> None:
    sources = ["class A:\n    def f(self):\n        return 12\n" * 20]
    tokenizer = train_tokenizer(sources)
    for text in ("\ttab\r\n", "naïve ☃ \U0001f600", "  two  spaces ", "x=1234", "\n\n\n", "a\x00b"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    tokens = tokenizer.tokenize("class A:\n        x")
    assert len(tokens) == len({*tokens}) and tokens[-1] == "x"
    assert tokenizer.convert_tokens_to_string(tokens[-2:-1]) == "\n        "
    assert len(tokenizer.tokenize("2024")) == 4
    assert len(tokenizer) <= VOCABULARY
    assert tokenizer.eos_token == tokenizer.bos_token == END


def test_windows_cover_the_documents_in_another_order_each_time() -> None:
    texts = [torch.arange(100), torch.arange(100, 200), torch.arange(200, 320)]
    found = batches(texts, 2, 16, torch.Generator().manual_seed(0))
    first = [next(found) for _ in range(10)]
    assert {batch.shape for batch in first} == {(2, 16)}
    seen = torch.cat(first).flatten()
    assert len(seen.unique()) == 320
    assert not torch.equal(first[0], next(found))
    again = batches(texts, 2, 16, torch.Generator().manual_seed(0))
    assert torch.equal(first[0], next(again))


def test_each_document_is_ended(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("import os\n")
    tokenizer = train_tokenizer(["import os\n"])
    (tokens,) = encode(tokenizer, documents(tmp_path))
    assert tokens[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(tokens[:-1]) == "import os\n"


def test_records_have_what_is_not_held_out(tmp_path: Path) -> None:
    for name in ("os.py", "sched.py"):
        (tmp_path / name).write_text(f"name = '{name}'\nprint(name)\n")
    write_records(tmp_path / "texts.jsonl", tmp_path)
    lines = (tmp_path / "texts.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"text": "name = 'os.py'\nprint(name)\n"}]

"""A tokenizer that cannot be used is one line, whatever is wrong with its files; every file may name tokens that end a text."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from understudy import demo
from understudy.errors import CheckpointError
from understudy.generation_config import NAME
from understudy.models.stock.configuration import stop_ids, tokenizer_of

Change = Callable[[Path], object]
UNKNOWN = [{"SpecialToken": {"id": "<zz>", "type_id": 0}}]
STRANGE = {"type": "TemplateProcessing", "single": UNKNOWN, "pair": [], "special_tokens": {}}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The built-in model's small files, to break."""
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(demo.path() / name, tmp_path)
    return tmp_path


def edit(name: str, *without: str, **values: Any) -> Change:
    def change(directory: Path) -> None:
        content = json.loads((directory / name).read_text())
        kept = {key: value for key, value in content.items() if key not in without}
        (directory / name).write_text(json.dumps({**kept, **values}))

    return change


def tokens(*without: str, **values: Any) -> Change:
    return edit("tokenizer.json", *without, **values)


def settings(**values: Any) -> Change:
    return edit("tokenizer_config.json", **values)


def content(name: str, data: bytes) -> Change:
    return lambda directory: (directory / name).write_bytes(data)


def gone(*names: str) -> Change:
    return lambda directory: [(directory / name).unlink() for name in names]


FAULTS: dict[str, Change] = {
    "a pre-tokenizer nobody knows": tokens(pre_tokenizer={"type": "Nonesuch"}),
    "a decoder nobody knows": tokens(decoder={"type": "Nonesuch"}),
    "a model nobody knows": tokens(model={"type": "Nonesuch"}),
    "no model": tokens("model"),
    "merges of another form": tokens(model={"type": "BPE", "vocab": {"a": 0}, "merges": [1, 2]}),
    "a merge of unknown tokens": tokens(model={"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}),
    "an added token without an id": tokens(added_tokens=[{"id": "x"}]),
    "a template with an unknown token": tokens(post_processor=STRANGE),
    "a list": content("tokenizer.json", b"[]"),
    "a number": content("tokenizer.json", b"3"),
    "nothing": content("tokenizer.json", b""),
    "no JSON": content("tokenizer.json", b"{"),
    "no text": content("tokenizer.json", b"\xff\xfe\x00"),
    "settings: a list": content("tokenizer_config.json", b"[]"),
    "settings: no JSON": content("tokenizer_config.json", b"{"),
    "settings: no text": content("tokenizer_config.json", b"\xff\xfe"),
    "special tokens as a word": settings(additional_special_tokens="<x>"),
    "an end mark that is a number": settings(eos_token=3),
    "an end mark that is a list": settings(eos_token=["a"]),
    "an end mark without content": settings(eos_token={"x": 1}),
    "a class that is a number": settings(tokenizer_class=3),
    "added tokens without numbers": settings(added_tokens_decoder={"x": {"content": "a"}}),
    "added tokens as a list": settings(added_tokens_decoder=[1]),
    "a length that is a word": settings(model_max_length="x"),
    "templates without a text": settings(chat_template=[{"name": "x"}]),
    "templates that are words": settings(chat_template=["x"]),
    "a template file that is no text": content("chat_template.jinja", b"\xff\xfe"),
    "code that comes with it": settings(auto_map={"AutoTokenizer": ["own.Own", None]}, tokenizer_class="Own"),
    "a file for a library alone": lambda directory: [
        gone("tokenizer.json")(directory),
        content("tokenizer.model", b"x")(directory),
        settings(tokenizer_class="LlamaTokenizer")(directory),
    ],
    "no files": gone("tokenizer.json", "tokenizer_config.json"),
    "no tokens": gone("tokenizer.json"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_tokenizer_that_cannot_be_used_is_one_line(
    directory: Path, fault: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    FAULTS[fault](directory)
    with pytest.raises(CheckpointError) as said:
        tokenizer_of(directory)
    text = str(said.value)
    assert text.startswith(f"{directory} has no usable tokenizer: ") and "\n" not in text and text.endswith(".")
    assert capfd.readouterr().out == ""


def test_a_tokenizer_that_is_not_there_is_one_line(directory: Path) -> None:
    for file in directory.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="holds no tokenizer files"):
        tokenizer_of(directory)


def test_a_tokenizer_that_git_did_not_fetch_is_called_so(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9085657\n")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is only a pointer of Git LFS"):
        tokenizer_of(directory)


def test_a_file_of_sentencepiece_names_what_reads_it(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks for tiktoken, which would not help."""
    monkeypatch.setattr("understudy.models.stock.configuration._installed", lambda package: package == "protobuf")
    (directory / "tokenizer.model").write_bytes(b"\n\x0c\n\x05<unk>\x18\x02")
    # not needed beside a tokenizer.json
    tokenizer_of(directory)
    (directory / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.model alone .* tokenizer\.json, or `pip install sentencepiece`\."):
        tokenizer_of(directory)


def test_a_tokenizer_in_python_only_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: SimpleNamespace(is_fast=False))
    with pytest.raises(CheckpointError, match="Python only"):
        tokenizer_of(directory)


def test_a_tokenizer_of_another_model_is_refused(directory: Path) -> None:
    size = tokenizer_of(directory, 4096)._tokenizer.get_vocab_size(with_added_tokens=False)
    with pytest.raises(CheckpointError, match=f"knows {size} tokens, and the model {size - 1}"):
        tokenizer_of(directory, size - 1)
    settings(bos_token="<of a later hand>")(directory)
    assert len(tokenizer_of(directory, size)) > size, "tokens that were added later may lie outside, unless they are used"


@pytest.mark.parametrize("values", [{}, {"tokenizer_class": "NopeTokenizer"}, {"chat_template": 3}], ids=str)
def test_what_does_no_harm_is_taken(directory: Path, values: dict[str, Any]) -> None:
    settings(**values)(directory)
    tokenizer = tokenizer_of(directory, 4096)
    assert tokenizer.decode(tokenizer("def f(x):")["input_ids"]) == "def f(x):"
    assert not {"_vocab", "_merges"} & set(vars(tokenizer))


def test_every_file_may_name_end_marks(tmp_path: Path) -> None:
    config = SimpleNamespace(eos_token_id=[3, 4], get_text_config=lambda decoder: config)
    tokenizer = SimpleNamespace(eos_token_id=5)
    assert stop_ids(tmp_path / NAME, config, tokenizer, 10) == (frozenset({3, 4, 5}), [])
    (tmp_path / NAME).write_text(json.dumps({"eos_token_id": [6, 10]}))
    found, (note,) = stop_ids(tmp_path / NAME, config, tokenizer, 10)
    assert found == {3, 4, 5, 6} and NAME in note and "end mark 10" in note
    config.eos_token_id = "3"
    with pytest.raises(CheckpointError, match=r"config.json: eos_token_id"):
        stop_ids(tmp_path / NAME, config, tokenizer, 10)


def test_a_template_in_a_file_of_its_own_is_the_tokenizers(directory: Path) -> None:
    (directory / "chat_template.json").write_text(json.dumps({"chat_template": "<{{ messages[0].content }}>"}))
    settings(chat_template=None)(directory)
    assert tokenizer_of(directory).chat_template == "<{{ messages[0].content }}>"
    settings(chat_template="own")(directory)
    assert tokenizer_of(directory).chat_template == "own"

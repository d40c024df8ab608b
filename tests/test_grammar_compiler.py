"""Grammars of a model's tokens: what they see is the text that a caller gets, and no hostile one stops anybody."""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tiny import byte_tokenizer
from understudy import Constraint
from understudy import grammar_compiler as compiling
from understudy.detokenizer import Detokenizer
from understudy.errors import UsageError
from understudy.grammar_compiler import GrammarCompiler

SPACE = "\u2581"


def sentence_pieces(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of pieces with spaces in them, decoded as `kind` of model does it."""
    words = [SPACE, *'{}":,abé1', SPACE + "a", SPACE + '"', "ab"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    inner = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True))
    steps: dict[str, list[Any]] = {
        "llama": [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)],
        "gemma": [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()],
        "metaspace": [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first", split=False)],
    }
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)  # type: ignore[assignment]
    inner.decoder = decoders.Sequence(steps[kind])  # type: ignore[assignment]
    inner.add_special_tokens([AddedToken(name, special=True) for name in ("<unk>", "<s>", "</s>", "<|mark|>")])
    inner.add_tokens([AddedToken(name, special=False, normalized=False) for name in ("<tool_call>", " spaced out")])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


TOKENIZERS = {"bytes": byte_tokenizer(), **{kind: sentence_pieces(kind) for kind in ("llama", "gemma", "metaspace")}}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_what_a_grammar_reads_is_the_text(kind: str) -> None:
    """Random tokens that it allows, one after another: their text fits, and nothing special is among them."""
    tokenizer = TOKENIZERS[kind]
    size = len(tokenizer)
    compiler = GrammarCompiler(tokenizer, size + 9)
    special = {id for id, token in tokenizer._tokenizer.get_added_tokens_decoder().items() if token.special}
    chance = np.random.default_rng(3)
    properties = {"a": {"type": "string"}, "b": {"type": "array", "items": {"enum": ["é", "<tool_call>", 1]}}}
    schema = {"type": "object", "properties": properties}
    begin = tokenizer("a")["input_ids"]
    for constraint in [Constraint.json_schema({**schema, "required": ["a", "b"], "additionalProperties": False})] * 6:
        state = compiler.state(constraint, {0})
        text = Detokenizer(tokenizer, begin)
        said = ""
        while not state.complete:
            allowed = state.allowed([]).nonzero()[0]
            assert len(allowed) and not special & set(allowed.tolist()) and allowed.max() < size
            # Ends of strings and lists, or texts would be long.
            ends = [token for token in allowed.tolist() if tokenizer.decode([token]).strip() in ('"', "]", "}")]
            token = int(chance.choice(ends if ends and chance.random() < 0.3 else allowed))
            state.take(token)
            said += text.add(token)
        value = json.loads(said + text.finish())
        assert set(value) == {"a", "b"} and set(value["b"]) <= {"é", "<tool_call>", 1}


def test_special_tokens_are_allowed_where_a_grammar_names_them_alone() -> None:
    tokenizer = sentence_pieces("llama")
    compiler = GrammarCompiler(tokenizer, len(tokenizer))
    mark, call = tokenizer.convert_tokens_to_ids("<|mark|>"), tokenizer.convert_tokens_to_ids("<tool_call>")
    state = compiler.state(Constraint.grammar('start: <|mark|> "<tool_call>" /.*/'), {2})
    assert state.allowed([]).nonzero()[0].tolist() == [mark]
    assert state.allowed([mark])[call] and not state.allowed([mark])[2] and not state.allowed([mark])[mark]
    after = state.allowed([mark, call])
    assert after[2] and not after[mark] and not after[1]


@pytest.mark.parametrize("decoder", [None, decoders.WordPiece(), decoders.BPEDecoder()], ids=str)
def test_a_tokenizer_that_changes_texts_is_refused(decoder: Any) -> None:
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["a</w>", "b", "##c", "d"])}, "b"))
    if decoder is not None:
        inner.decoder = decoder
    compiler = GrammarCompiler(PreTrainedTokenizerFast(tokenizer_object=inner), 4)
    with pytest.raises(UsageError, match=r"^field cannot be used: this model's tokenizer changes texts"):
        compiler.check(Constraint.regex("a+", "field"))


def oneof(depth: int) -> Any:
    schema: Any = {"type": "string"}
    for i in range(depth):
        schema = {"oneOf": [schema, {"type": "object", "properties": {f"k{i}": schema}, "required": [f"k{i}"]}]}
    return schema


IMPOSSIBLE = {
    "contradictory": {"type": "string", "minLength": 5, "maxLength": 2},
    "false": {"enum": []},
    "required and impossible": {"type": "object", "properties": {"a": False}, "required": ["a"]},
    "itself": {"$ref": "#"},
    "a circle": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "elsewhere": {"$ref": "http://example.com/x.json"},
    "nowhere": {"$ref": "#/$defs/none"},
    "no such type": {"type": "strin"},
    "not supported": {"type": "array", "uniqueItems": True},
    "a bad pattern": {"type": "string", "pattern": "(unclosed"},
    "a reference in a pattern": {"type": "string", "pattern": r"(a)\1"},
    "many branches": {"allOf": [{"anyOf": [{"required": [f"p{i}{j}"], "type": "object"} for j in range(3)]} for i in range(9)]},
    "patterns that meet nowhere": {"allOf": [{"type": "string", "pattern": f"^{letter}"} for letter in "ab"]},
    "one of many in one another": oneof(9),
    "a number of rare kinds": {"type": "integer", "multipleOf": 7919 * 7907, "minimum": 10**15, "maximum": 10**16},
}
HOSTILE = {
    "long": {"type": "string", "minLength": 10**9},
    "many": {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
    "deep": json.loads('{"items":' * 40 + "true" + "}" * 40),
    "enum": {"enum": [f"value {i}" for i in range(8000)]},
    "wide": {"type": "object", "properties": {f"p{i}": {"type": "string", "pattern": "^[a-z]{1,20}$"} for i in range(400)}},
    "tree": {"$defs": {"n": {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"},
    "states": {"type": "object", "properties": {f"p{i}": {"type": "string", "pattern": "^(a|b)*a(a|b){30}$"} for i in range(50)}},
}
compiler = GrammarCompiler(byte_tokenizer(), 256)


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_an_impossible_schema_is_one_line(name: str) -> None:
    with pytest.raises(UsageError, match=r"^response_format cannot be used: \S.*\.$") as error:
        compiler.check(Constraint.json_schema(IMPOSSIBLE[name], "response_format"))
    assert "\n" not in str(error.value) and len(str(error.value)) < 260


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_is_compiled_or_refused(name: str) -> None:
    try:
        state = compiler.state(Constraint.json_schema(HOSTILE[name]), {0})
    except UsageError as error:
        assert "\n" not in str(error)
    else:
        assert state.allowed([]).any()


@pytest.mark.parametrize("pattern", ["(", r"(a)\1", "(?=a)b", "[^\\x00-\\U0010ffff]", "a*", "(a{1,9999}){1,9999}", "(a*)*"])
def test_a_bad_regex_is_one_line(pattern: str) -> None:
    made = Constraint.regex(pattern, "guided_regex")
    try:
        compiler.check(made)
    except UsageError as error:
        assert str(error).startswith("guided_regex cannot be used: ") and "\n" not in str(error)
    else:
        assert "*" in pattern or "9999" in pattern


@pytest.mark.parametrize("text", ["start: nope", "root ::= nope", "root ::=", "begin: /a/", "start: /(/", 'start: ""', "%"])
def test_a_bad_grammar_is_one_line(text: str) -> None:
    with pytest.raises(UsageError, match=r"^grammar cannot be used: ") as error:
        compiler.check(Constraint.grammar(text, "grammar"))
    assert "\n" not in str(error.value)


def test_the_forms_of_a_grammar_and_of_texts() -> None:
    tokenizer = byte_tokenizer()
    for constraint, text in (
        (Constraint.grammar('root ::= "a" [0-9]+ | "\\n"'), "a12"),
        (Constraint.grammar('start: "a" NUMBER\nNUMBER: /[0-9]+/'), "a12"),
        (Constraint.choice(['q"\\', "é\n😀", "é"]), "é\n😀"),
        (Constraint.choice(['q"\\', "é\n😀", "é"]), 'q"\\'),
        (Constraint.json_schema({"type": "object"}), '{ "a": [\n    1, 2]}'),
        (Constraint.json_schema(True), '"\\n é"'),
    ):
        state = compiler.state(constraint, {0})
        for token in tokenizer(text)["input_ids"]:
            assert state.allowed([])[token], (text, token)
            state.take(token)
        assert state.allowed([])[0], f"{text!r} is whole"
    state = compiler.state(Constraint.json_object(), {0})
    spaces = tokenizer("{  ")["input_ids"]
    assert state.allowed(spaces[:1])[spaces[1]] and not state.allowed(spaces[:2])[spaces[2]], "no more space than one"


def test_what_was_compiled_is_kept_and_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    own = GrammarCompiler(byte_tokenizer(), 256)
    made: list[Constraint] = []
    compile = own._compile
    monkeypatch.setattr(own, "_compile", lambda constraint: made.append(constraint) or compile(constraint))  # type: ignore[func-returns-value]
    one = Constraint.regex("[a-z]{3}")
    first, second = own.state(one, {0}), own.state(Constraint.regex("[a-z]{3}", "other"), {0})
    for token in byte_tokenizer()("abc")["input_ids"]:
        first.take(token)
    assert first.complete and not second.complete and len(made) == 1
    for i in range(compiling.KEPT):
        own.check(Constraint.regex(f"a{i}"))
    own.check(one)
    assert len(made) == compiling.KEPT + 2, "the one that was used longest ago is compiled again"


def test_one_that_takes_too_long_is_given_up_and_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    own = GrammarCompiler(byte_tokenizer(), 256)
    go = threading.Event()
    compile = own._compile

    def slow(constraint: Constraint) -> Any:
        assert go.wait(60)
        return compile(constraint)

    monkeypatch.setattr(compiling, "PATIENCE", 0.05)
    monkeypatch.setattr(own, "_compile", slow)
    with pytest.raises(UsageError, match=r"^field was not compiled within 0.05 s"):
        own.check(Constraint.regex("a", "field"))
    go.set()
    monkeypatch.setattr(compiling, "PATIENCE", 60.0)
    own.check(Constraint.regex("b"))


def test_other_threads_run_while_one_compiles() -> None:
    """llguidance gives Python's lock back: a thread counts on meanwhile."""
    own = GrammarCompiler(byte_tokenizer(), 256)
    own.check(Constraint.regex("a"))
    ticks: list[float] = []
    done = threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    other = threading.Thread(target=tick)
    other.start()
    start = time.perf_counter()
    own.check(Constraint.json_schema(HOSTILE["wide"]))
    end = time.perf_counter()
    done.set()
    other.join()
    assert sum(start < moment < end for moment in ticks) > 3, f"{end - start:.3f} s without one"


def test_without_llguidance_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UsageError, match=r"^--schema needs llguidance, .*pip install"):
        GrammarCompiler(byte_tokenizer(), 256).check(Constraint.json_object("--schema"))


def test_a_server_makes_what_all_need_before_it_has_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    own = GrammarCompiler(byte_tokenizer(), 256)
    own.warm()
    monkeypatch.setattr(compiling, "_tokens_of", None)
    own.check(Constraint.regex("a"))
    monkeypatch.setitem(sys.modules, "llguidance", None)
    GrammarCompiler(byte_tokenizer(), 256).warm()


@pytest.mark.parametrize(("constraint", "says"), [
    (Constraint.regex("(", "--regex"), "--regex cannot be used: unclosed group."),
    (Constraint.json_schema(IMPOSSIBLE["contradictory"], "--schema"), "--schema cannot be used: Unsatisfiable"),
    (Constraint.grammar("root ::= x", "--grammar"), "--grammar cannot be used: "),
], ids=str)  # fmt: skip
def test_much_is_known_before_there_is_a_tokenizer(constraint: Constraint, says: str) -> None:
    with pytest.raises(UsageError) as error:
        compiling.check_alone(constraint)
    assert str(error.value).startswith(says) and "\n" not in str(error.value)
    compiling.check_alone(Constraint.grammar('start: <|mark|> "a"'))

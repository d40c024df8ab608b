"""`--schema`, `--regex` and `--grammar`: the text fits, and what cannot be used is one line before a model is loaded."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from tests.frontends.conftest import Run
from understudy import Constraint, SamplingParams
from understudy.errors import UsageError
from understudy.frontends.form import formed

SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}


def asked(**options: object) -> Namespace:
    return Namespace(**{"schema": None, "regex": None, "grammar": None, **options})


def test_each_option_is_a_form(tmp_path: Path) -> None:
    params = SamplingParams(seed=3)
    assert formed(params, asked()) is params
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text(json.dumps(SCHEMA))
    grammar.write_text('start: "é"')
    assert formed(params, asked(schema=schema)).constraint == Constraint.json_schema(SCHEMA)
    assert formed(params, asked(grammar=grammar)).constraint == Constraint.grammar('start: "é"')
    made = formed(params, asked(regex="a+"))
    assert made.constraint == Constraint.regex("a+") and made.seed == 3 and not made.gives("temperature")


@pytest.mark.parametrize("command", ["run", "chat"])
def test_what_cannot_be_used_is_one_line(understudy: Run, tmp_path: Path, command: str) -> None:
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "bytes.json").write_bytes(b"\xff")
    for words, says in (
        (["--regex", "("], "--regex cannot be used: unclosed group."),
        (["--schema", "none.json"], "Cannot read the schema from none.json"),
        (["--schema", "list.json"], "--schema must be a JSON schema"),
        (["--schema", "bytes.json"], "not UTF-8"),
        (["--schema", "list.json", "--regex", "a"], "--schema and --regex cannot be given together"),
    ):
        done = understudy(command, "demo", *words, stdin="", UNDERSTUDY_FAKE="broken")
        assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1, done.stderr
        assert done.stdout == ""


def test_two_forms_or_a_missing_library_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UsageError, match=r"^--regex needs llguidance, which is not installed: pip install"):
        formed(SamplingParams(), asked(regex="a"))


def test_llguidance_is_imported_for_those_who_ask_alone() -> None:
    words = "import sys; import understudy.llm, understudy.frontends.run; print('llguidance' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"

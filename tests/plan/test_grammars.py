"""Grammars have a line in the plan of who may hold texts to forms, and take no more than it says."""

from __future__ import annotations

import os
import subprocess
import sys

from understudy import LLM
from understudy.demo import path
from understudy.plan.grammars import grammar_bytes

# Compiles as many grammars as are kept, each of twenty tools, and begins a text for each of four rows; prints the bytes that took.
TAKEN = """
import ctypes, gc, sys
from transformers import AutoTokenizer
from understudy.api.enforced import required_calls
from understudy.api.messages import ToolUse
from understudy.grammar_compiler import KEPT, GrammarCompiler

def held():
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("RssAnon"))

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
size = len(tokenizer)
import llguidance
before = held()
compiler = GrammarCompiler(tokenizer, size)
compiler.warm()
tables = held() - before
states = []
for number in range(KEPT):
    kinds = ["string", "integer", "boolean", "number"]
    schema = {"type": "object", "properties": {f"p{number}{i}": {"type": kinds[i % 4]} for i in range(6)}}
    tools = [{"function": {"name": f"tool{number}{i}", "parameters": schema}} for i in range(20)]
    calls = required_calls(ToolUse(tools, True))
    compiler.check(calls)
    if number < 4:
        states.append(compiler.state(calls, ()))
for state in states:
    for _ in range(40):
        state.take(int(state.allowed(()).argmax()))
print(tables, held() - before)
"""


def test_grammars_take_what_the_plan_says() -> None:
    words = [sys.executable, "-c", TAKEN, str(path())]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=True)
    tables, taken = map(int, done.stdout.split())
    planned = grammar_bytes(4096, 4)
    assert 4096 * 200 < tables < 4096 * 600
    assert planned / 3 < taken < 1.1 * planned


def test_only_who_asks_for_grammars_has_their_line() -> None:
    plain = LLM.plan_only(None, rows=4)
    held = LLM.plan_only(None, rows=4, grammars=True)
    assert "grammars" not in plain.items and held.items["grammars"] == grammar_bytes(4096, 4)
    assert held.least_bytes > plain.least_bytes + held.items["grammars"]

"""A command's start leaves out what no run uses, and gives it back to whoever asks for it after all."""

import ctypes
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from understudy import startup

# What takes longer to import than all that a run needs of transformers.
UNUSED = ["torch._dynamo.symbolic_convert", "torch.distributed.tensor", "torch.distributed.fsdp", "sympy", "triton"]
# What torch imports itself for those who compile or export a model, or draw from distributions.
UNUSED += ["torch._prims", "torch._refs", "torch.export.exported_program", "torch.distributions.normal"]
# A small model in transformers, first as a command imports it.
BUILT = """
import json, sys
from understudy import startup
{before}
with startup.lean():
    import understudy.llm
from understudy.models.stock.hf import attention_interface
attention_interface()
from transformers import AutoConfig, AutoModelForCausalLM
import torch
sizes = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=32)
config = AutoConfig.for_model("llama", **sizes)
AutoModelForCausalLM.from_config(config)
found = [name for name in json.loads(sys.argv[1]) if name in sys.modules]
{after}
torch.manual_seed(0)
logits = AutoModelForCausalLM.from_config(config)(torch.tensor([[1, 2, 3]])).logits
print(json.dumps([found, logits.sum().item()]))
"""


def built(before: str = "startup.own()", after: str = "") -> tuple[list[str], float]:
    """Which of UNUSED a process has once it imported what commands import, and what a model in it computes."""
    code = BUILT.format(before=before, after=after)
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(UNUSED)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found, logits = json.loads(done.stdout.splitlines()[-1])
    return found, logits


@pytest.fixture(scope="module")
def whole() -> tuple[list[str], float]:
    """The same in a program of somebody else's."""
    return built(before="")


def test_a_command_imports_neither_a_compiler_nor_tensors_of_many_machines(whole: tuple[list[str], float]) -> None:
    asked = """
assert torch.distributed.is_available() and torch.ones(2).sum() == 2
assert type(torch._dynamo) is startup.Deferred
# asked for what it does not answer by itself, it is the real one from now on
torch._dynamo.reset()
assert torch._dynamo.disable is not startup.unmarked and "torch._dynamo.symbolic_convert" in sys.modules
import transformers.models
assert transformers.models.llama.LlamaConfig is type(config)
"""
    found, logits = built(after=asked)
    assert found == []
    assert logits == whole[1]
    assert set(whole[0]) >= {"sympy", "torch._dynamo.symbolic_convert"}


USES = {
    "exported": "print(float(torch.export.export(torch.nn.ReLU(), (torch.ones(2),)).module()(torch.tensor([-1.0, 3.0])).sum()))",
    "compiled": "print(float(torch.compile(lambda x: x.relu().sum() + 1, backend='eager')(torch.tensor([-1.0, 2.0]))))",
    "control flow": "print(float(torch.cond(torch.tensor(True), lambda: torch.ones(3).sum(), lambda: torch.zeros(()))))",
    "distributions": "print(float(torch.distributions.Normal(torch.tensor(3.0), torch.tensor(1.0)).mean))",
    "masked": "print(float(torch.masked.sum(torch.ones(4), mask=torch.tensor([True, True, False, True]))))",
    # An operator whose shape without numbers is written in Python.
    "shapes": "startup.load_all(startup.SHAPES); print(float(torch.ones(3, 1, device='meta').histc().numel() / 100 * 3))",
}


@pytest.mark.parametrize("use", USES)
def test_what_torch_left_out_is_there_for_who_asks(use: str) -> None:
    code = f"import sys; from understudy import startup; startup.own()\nwith startup.lean():\n    import torch\n{USES[use]}"
    begun = "assert type(sys.modules['torch._meta_registrations']) is startup.Deferred"
    code = code.replace("import torch\n", f"import torch\n    {begun}\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout) == (0, "3.0\n"), done.stderr


def test_what_cannot_be_imported_without_is_imported_whole(whole: tuple[list[str], float]) -> None:
    # This version of a library asks the compiler for more than marks, and takes what it gets for something else.
    odd = "startup.own(); startup.DEFERRED['torch._dynamo']['disable'] = 0; startup.DEFERRED['torch._dynamo']['allow_in_graph'] = 0"
    found, logits = built(before=odd)
    assert logits == whole[1] and "sympy" in found


def test_a_module_is_hidden_for_a_while(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "somewhere_else.py").write_text("here = True")
    monkeypatch.syspath_prepend(tmp_path)
    with startup.hidden("somewhere_else"), pytest.raises(ImportError):
        import somewhere_else
    import somewhere_else

    assert somewhere_else.here
    with startup.hidden("somewhere_else"):
        import somewhere_else as again
    assert again is somewhere_else


def test_in_a_program_of_somebody_else_nothing_changes() -> None:
    before = list(sys.meta_path)
    with startup.lean():
        assert sys.meta_path == before


# Bytes that the C library got from the system for one block of 4 MiB alone, once a larger one was freed.
LARGE_BLOCKS = """
import ctypes
from understudy import startup
{before}
library = ctypes.CDLL(None)
names = ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]
class Counts(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in names]
library.mallinfo2.restype = Counts
library.malloc.restype = ctypes.c_void_p
library.malloc.argtypes = [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
library.free(library.malloc(16 << 20))
before = library.mallinfo2().hblkhd
held = library.malloc(4 << 20)
print(library.mallinfo2().hblkhd - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="this C library does not tell what it got")
@pytest.mark.parametrize(
    ("before", "wanted", "goes_back"),
    [
        ("startup.own()", "", True),
        ("", "", False),
        ("startup.own()", "33554432", False),
        ("startup.own(); kept = startup.keeping_memory(); kept.__enter__()", "", False),
        ("startup.own(); kept = startup.keeping_memory(); kept.__enter__(); kept.__exit__(None, None, None)", "", True),
    ],
)
def test_large_memory_of_a_command_goes_back_once_it_is_free(before: str, wanted: str, goes_back: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != startup.MMAP_VARIABLE}
    if wanted:
        environment[startup.MMAP_VARIABLE] = wanted
    code = LARGE_BLOCKS.format(before=before)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert (int(done.stdout) >= 4 << 20) == goes_back

# A command that ends before a model is loaded, and what it has imported by then.
ENDED = """
import json, sys
from understudy.frontends import main
unused = json.loads(sys.argv.pop(1))
status = main()
print(json.dumps([status, "torch" in sys.modules, [name for name in unused if name in sys.modules]]))
"""


@pytest.mark.parametrize("command", ["serve", "batch"])
def test_commands_of_many_requests_leave_out_the_same(command: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        arguments = {
            "serve": ["demo", "--port", str(taken.getsockname()[1])],
            "batch": ["demo", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl")],
        }[command]
        done = subprocess.run(
            [sys.executable, "-c", ENDED, json.dumps(UNUSED), command, *arguments],
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
    assert json.loads(done.stdout) == [2, True, []], done.stderr

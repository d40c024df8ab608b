"""What makes importing torch take less time leaves nothing out, and tells nobody anything that is not so."""

import subprocess
import sys

from understudy.torch_import import REGISTERING

# A command's imports; then how many files `inspect` knows, and what it says of one that it was told of and of one that it was not.
ASKED = """
import inspect
from understudy import startup
startup.own()
with startup.lean():
    import torch
known = len(inspect.modulesbyfile)
import torch.hub, torch._library.custom_ops
print(known)
print(inspect.getmodule(None, torch.library.__file__).__name__)
print(inspect.getmodule(compile("0", torch.hub.__file__, "exec")).__name__)
"""


def test_registering_operators_follows_no_paths_of_modules() -> None:
    done = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    known, told, found = done.stdout.split()
    assert int(known) < 10
    assert (told, found) == ("torch.library", "torch.hub")


def test_files_are_those_of_the_modules() -> None:
    code = """
import importlib, inspect
from understudy.torch_import import REGISTERING, name_files
name_files(REGISTERING)
for file, name in list(inspect.modulesbyfile.items()):
    print(name, importlib.import_module(name).__file__ == file)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout.splitlines() == [f"{name} True" for name in REGISTERING], done.stderr

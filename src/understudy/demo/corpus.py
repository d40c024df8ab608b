"""The text the demo model learns from: the standard library of any Python, without tests and generated tables.

Which files are held out depends on their path alone, so every run on every machine keeps the same ones apart.

    python -m understudy.demo.corpus --output FILE.jsonl     (what `understudy train` takes: those that are not held out)
"""

import argparse
import ast
import hashlib
import json
import sysconfig
from dataclasses import dataclass
from pathlib import Path

SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "pydoc_data"}
HELD_OUT_SHARE = 0.04
LITERAL_SHARE = 0.4
"""A file with more constants than this among its syntax nodes is a table, not a program."""


@dataclass(frozen=True)
class Document:
    """One source file."""

    name: str
    text: str
    held_out: bool


def standard_library() -> Path:
    """The folder of the running Python's own modules."""
    return Path(sysconfig.get_path("stdlib"))


def documents(root: Path | None = None) -> list[Document]:
    """Every program under `root` (by default the standard library), in the order of their paths."""
    root = root or standard_library()
    found = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_FOLDERS.isdisjoint(relative.parts) and not relative.parts[0].startswith(("config-", "__phello__")):
            text = _program(path)
            if text:
                name = relative.as_posix()
                found.append(Document(name, text, is_held_out(name)))
    return found


def is_held_out(name: str) -> bool:
    """Whether the model must never see this file: decided by its path, the same everywhere."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def _program(path: Path) -> str:
    """The file's text, or nothing where it is not UTF-8, does not parse, or is mostly a table of constants."""
    try:
        text = path.read_text(encoding="utf-8").strip()
        nodes = list(ast.walk(ast.parse(text)))
    except (UnicodeDecodeError, SyntaxError):
        return ""
    constants = sum(isinstance(node, ast.Constant) for node in nodes)
    return text + "\n" if text and constants <= LITERAL_SHARE * len(nodes) else ""


def write_records(path: Path, root: Path | None = None) -> None:
    """Write the programs that are not held out to a .jsonl file, each as {"text": ...} in a line."""
    with path.open("w", encoding="utf-8") as file:
        for document in documents(root):
            if not document.held_out:
                file.write(json.dumps({"text": document.text}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the texts that the demo model learned from, for training draft heads.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, help="a folder of Python sources (default: this Python's own)")
    given = parser.parse_args()
    write_records(given.output, given.corpus)


if __name__ == "__main__":
    main()

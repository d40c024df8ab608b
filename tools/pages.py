"""Builds the site: README.md, docs/ and the pages that they link to, with the Python API from docstrings (MkDocs, mkdocstrings).

    python tools/pages.py                   # into build/site
    python tools/pages.py --output DIR

A link or anchor that leads nowhere, a page without a place in the menu and a docstring that names no such parameter are
errors. Pages keep the places that they have in the repository, so every link leads to the same in both."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "docs/img/*", "benchmarks/*.md")
# Files that pages link to and that are no pages.
LINKED = ("src/understudy/*.py", "src/understudy/server/*.py")


def main() -> int:
    """Build the site. The exit status is 1 where something leads nowhere."""
    parser = argparse.ArgumentParser(description="Builds the site of the documentation.")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "site", metavar="DIR", help="default: build/site")
    output = parser.parse_args().output
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        site(output)
    except Abort as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{output}/index.html")
    return 0


def site(output: Path) -> None:
    """Build the site into the directory `output`. mkdocs' Abort where a page has a fault; its log says which."""
    with tempfile.TemporaryDirectory() as place:
        gather(Path(place))
        before = Path.cwd()
        # mkdocstrings looks for sources from here
        os.chdir(ROOT)
        try:
            build(load_config(str(ROOT / "mkdocs.yml"), docs_dir=place, site_dir=str(output.resolve()), strict=True))
        finally:
            os.chdir(before)


def gather(place: Path) -> None:
    """Copy pages, and files that they link to, into the directory `place`."""
    for pattern in (*PAGES, *LINKED):
        for path in ROOT.glob(pattern):
            target = place / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)


if __name__ == "__main__":
    sys.exit(main())

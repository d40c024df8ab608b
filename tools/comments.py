"""An extension for griffe: the comment above a field of a dataclass is that field's documentation, as this project has it."""

from __future__ import annotations

from typing import Any

from griffe import Attribute, Docstring, Extension


class Comments(Extension):
    """Gives attributes without a docstring the lines of comment right above them."""

    def on_attribute_instance(self, *, attr: Attribute, **_: Any) -> None:
        """Called for each attribute that griffe has found."""
        if attr.docstring is None and attr.lineno is not None and (text := comment_above(attr.lines_collection, attr)):
            attr.docstring = Docstring(text, parent=attr)


def comment_above(lines: Any, attr: Attribute) -> str:
    """The comment that ends in the line before `attr`, without its marks; empty where there is none."""
    source = lines[attr.filepath]
    found: list[str] = []
    number = (attr.lineno or 1) - 2
    while number >= 0 and source[number].strip().startswith("# "):
        found.insert(0, source[number].strip().removeprefix("# "))
        number -= 1
    return " ".join(found)

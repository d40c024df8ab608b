"""Whether JSON that is valid by a schema can ever end: a schema that requires itself, in itself, has no finite text.

A grammar of such a schema compiles, and whoever is held to it writes the same objects in one another until a limit ends that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# Values that are looked at; a schema that needs more is taken for one that ends.
MOST_VISITS = 200_000


def ends(schema: Any) -> bool:
    """Is there a finite JSON value that fits `schema`, as far as its references, required properties and items tell?

    All else (types, limits, patterns) is taken for possible. References to elsewhere are too."""
    return _Endings(schema).found()


class _Endings:
    """The least set of references behind which something finite stands, worked out round by round."""

    def __init__(self, schema: Any):
        self._schema = schema
        self._targets = {ref: self._behind(ref) for ref in _references(schema)}
        self._finite: set[str] = set()
        self._visits = 0

    def found(self) -> bool:
        """Does the whole schema end?"""
        grown = bool(self._targets)
        while grown and self._visits <= MOST_VISITS:
            more = {ref for ref, node in self._targets.items() if ref not in self._finite and self._ends(node)}
            grown = bool(more)
            self._finite |= more
        return self._visits > MOST_VISITS or self._ends(self._schema)

    def _behind(self, ref: str) -> Any:
        """What `ref` points to; true, which anything fits, where that is not in the schema."""
        node = self._schema
        for part in ref.removeprefix("#").split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(node, Mapping) and key in node:
                node = node[key]
            elif isinstance(node, list) and key.isdecimal() and int(key) < len(node):
                node = node[int(key)]
            else:
                return True
        return node

    def _ends(self, node: Any) -> bool:
        self._visits += 1
        if not isinstance(node, Mapping):
            return True
        ref = node.get("$ref")
        if isinstance(ref, str) and ref in self._targets and ref not in self._finite:
            return False
        for key in ("anyOf", "oneOf"):
            options = node.get(key)
            if isinstance(options, list) and options and not any(map(self._ends, options)):
                return False
        return all(map(self._ends, [*_listed(node.get("allOf")), *_needed(node)]))


def _needed(node: Mapping[str, Any]) -> Iterable[Any]:
    """The schemas of what every value of `node` has in it."""
    kind = node.get("type")
    if kind in ("object", ["object"]):
        properties = node.get("properties")
        known = properties if isinstance(properties, Mapping) else {}
        yield from (known[name] for name in _listed(node.get("required")) if isinstance(name, str) and name in known)
    least = node.get("minItems")
    if kind in ("array", ["array"]) and isinstance(least, int) and least > 0:
        first = _listed(node.get("prefixItems"))[:least]
        yield from first
        if len(first) < least:
            yield node.get("items", True)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _references(schema: Any) -> set[str]:
    """All local references of `schema`."""
    found: set[str] = set()
    level = [schema]
    while level:
        refs = {node["$ref"] for node in level if isinstance(node, Mapping) and isinstance(node.get("$ref"), str)}
        found |= {ref for ref in refs if ref.startswith("#")}
        inner = (node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else () for node in level)
        level = [child for children in inner for child in children]
    return found

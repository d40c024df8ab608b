"""Generation memory, both ways: gathering the logits of all candidates as Medusa does, or evaluating accepted nodes only.

    python benchmarks/specmemo.py

SpecMemo (arXiv 2506.01986) cuts the memory of a tree's step from 55 MB a query (64 nodes) to 19.5 MB (tree 1-10-16-17), by 65%.
What it cuts is the gather of every head's logits along every path from root to leaf, [heads, leaves, depth + 1, vocabulary]. A
head that is asked at accepted nodes only makes [heads, vocabulary]. Both are made and measured for a small model shaped as Llama,
and for Vicuna-7B's vocabulary; how many queries a device holds is calculated."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

MB = 10**6
ITEM = 2
QUERIES = 20
# The paper's figures.
PAPER = {"64 nodes": 55 * MB, "1-10-16-17": 19.5 * MB}
SPLITS = tuple(range(2, 16))
# Gigabytes of the device on which fixed splits are compared, and tokens of a query.
DEVICE = 16 * 10**9
QUERY_TOKENS = 128


@dataclass(frozen=True)
class Model:
    """What of a model decides how much generation takes."""

    name: str
    weights: int
    vocabulary: int
    # Bytes of one token's keys and values.
    token_bytes: int


@dataclass(frozen=True)
class Tree:
    """A tree of candidates: leaves and depth decide the gather, nodes the logits."""

    name: str
    heads: int
    nodes: int
    leaves: int
    depth: int

    def gathered(self, vocabulary: int) -> int:
        """Bytes of all heads' logits along all paths."""
        return self.heads * self.leaves * (self.depth + 1) * vocabulary * ITEM

    def accepted(self, vocabulary: int) -> int:
        """Bytes of all heads' logits at the accepted node."""
        return self.heads * vocabulary * ITEM


VICUNA = Model("Vicuna-7B", 13_476_839_424, 32000, 2 * 32 * 32 * 128 * ITEM)
TINY = Model("tiny Llama", 2 * 1_200_000, 1024, 2 * 4 * 2 * 64 * ITEM)
# The leaves of the paper's tree are not told: 25 is what gives its figure.
TREES = (Tree("64 nodes", 4, 64, 42, 4), Tree("1-10-16-17", 3, 44, 25, 3))


def measured(tree: Tree, vocabulary: int) -> tuple[int, int]:
    """Bytes of the largest tensor that each way makes: from logits [heads, nodes, vocabulary] of which paths are taken."""
    logits = torch.zeros(tree.heads, tree.nodes, vocabulary, dtype=torch.bfloat16)
    paths = torch.randint(tree.nodes, (tree.leaves, tree.depth + 1))
    gathered = logits[:, paths]
    accepted = logits[:, 0].clone()
    return gathered.nbytes, accepted.nbytes


def queries(model: Model, tree: Tree, gathers: bool, split: int = 0) -> int:
    """How many queries of QUERY_TOKENS run at once: what weights leave free is theirs; or a fixed share, 1 to `split`, if the
    weights fit in the rest."""
    scratch = tree.gathered(model.vocabulary) if gathers else tree.accepted(model.vocabulary)
    each = (QUERY_TOKENS + tree.nodes) * model.token_bytes + scratch
    if not split:
        return max(DEVICE - model.weights, 0) // each
    share = DEVICE // (1 + split)
    return share // each if DEVICE - share >= model.weights else 0


def rows(model: Model) -> list[dict[str, object]]:
    """A row for each tree."""
    found = []
    for tree in TREES:
        gathered, accepted = measured(tree, model.vocabulary)
        assert gathered == tree.gathered(model.vocabulary) and accepted == tree.accepted(model.vocabulary)
        found.append(
            {
                **asdict(tree), "model": model.name, "gathered": gathered, "accepted": accepted,
                "queries_gathered": QUERIES * gathered, "queries_accepted": QUERIES * accepted,
            }
        )  # fmt: skip
    return found


def lines(model: Model) -> list[str]:
    """The table of one model."""
    found = [f"{model.name}: MB a query and for {QUERIES} queries", "        tree   gather      x20  accepted      x20"]
    table = rows(model)
    for row in table:
        numbers = [int(str(row[name])) / MB for name in ("gathered", "queries_gathered", "accepted", "queries_accepted")]
        found.append(f"{row['name']:>12} {numbers[0]:8.2f} {numbers[1]:8.1f} {numbers[2]:9.3f} {numbers[3]:8.2f}")
    wide, narrow = (int(str(row["gathered"])) for row in table)
    least = int(str(table[0]["accepted"]))
    found.append(f"the smaller tree takes {1 - narrow / wide:.0%} less; accepted nodes alone {1 - least / wide:.1%} less")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    for model in (TINY, VICUNA):
        print("\n".join(lines(model)), end="\n\n")
    wide = TREES[0]
    free = {gathers: queries(VICUNA, wide, gathers) for gathers in (True, False)}
    device = f"{DEVICE / 10**9:.0f} GB beside {VICUNA.name}"
    print(f"queries of {QUERY_TOKENS} tokens in {device}: planned {free[False]}, with gather {free[True]}")
    split = {f"1:{parts}": queries(VICUNA, wide, True, parts) for parts in SPLITS}
    print("fixed splits, with gather: " + ", ".join(f"{name} {count}" for name, count in split.items()))
    if given.json:
        found = {"rows": [*rows(TINY), *rows(VICUNA)], "paper": PAPER, "planned": free[False]}
        found |= {"gathered": free[True], "splits": split}
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""The table of kinds: each beside Medusa."""

import head_kinds
from understudy.scaling.cells import Accepted, Cell


def test_extra_tokens_are_told_as_multiples_of_medusas() -> None:
    worth = {"medusa": 1.5, "clover": 1.8, "clover2": 2.0, "eagle": 2.0}
    lines = head_kinds.table([Accepted(Cell(kind, 1, 9), kind, tokens, (0.5, 0.25), 10) for kind, tokens in worth.items()])
    assert len(lines) == 6 and lines[2].startswith("| `medusa:heads=5` | 1.500 | 1.00 |")
    assert "| 1.800 | 1.60 | 1.5 to 1.8 | 50%, 25% |" in lines[3]

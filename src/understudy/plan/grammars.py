"""What grammars take that texts are held to, measured with llguidance (docs/plan.md says how)."""

from __future__ import annotations

from .demand import MIB

# Grammars that are kept compiled.
KEPT = 16
# Bytes of llguidance's view of a vocabulary, for each of its tokens: with 4,096 and with 49,152 it took 400 and 405.
TOKEN = 430
# A grammar: calls of twenty tools took 1.0 MiB, a schema of 400 properties with patterns 1.5, a usual one 0.2.
GRAMMAR = MIB
# What a text under way has of its own, which grows as it is written (0.2 MiB after 300 tokens), and the nodes of a pass of which it
# keeps what may follow, a bit a token.
STATE = MIB // 4
NODES = 64


def grammar_bytes(vocabulary: int, rows: int) -> int:
    """Bytes for grammars of a model with `vocabulary` tokens, of which `rows` texts together may have one each."""
    return vocabulary * TOKEN + KEPT * GRAMMAR + rows * (STATE + NODES * vocabulary // 8)

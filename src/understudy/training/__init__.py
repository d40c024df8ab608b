"""Training of draft heads: a frozen target reads texts once, and a head learns from the hidden states that are kept on disk."""

from __future__ import annotations

from collections.abc import Callable

# Called with what is being done, what is done of it, and all there is to do (0: it is a note).
Report = Callable[[str, float, float], None]

"""What a search expects before its first pass. `understudy scale` measures it for a head and keeps it in a file beside that;
after a few passes, what they took and gave decides."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from ..errors import UnderstudyError
from .pace import FIRST_NODES, FIRST_TOKENS

# The file in a head's directory, and the version of what it holds.
FILE = "pace.json"
VERSION = 1


@dataclass(frozen=True)
class Start:
    """Expected tokens and nodes of a pass."""

    # Tokens that a pass gives each text.
    tokens_per_pass: float = FIRST_TOKENS
    # Nodes of one among b texts: shared_nodes / b + own_nodes.
    shared_nodes: float = FIRST_NODES
    own_nodes: float = 0.0
    # What a pass costs besides its nodes, in nodes; 0: not known.
    pass_nodes: float = 0.0

    def nodes(self, texts: int) -> int:
        """Nodes that `texts` texts should have together in a pass."""
        return max(round(self.shared_nodes + self.own_nodes * texts), texts)

    def save(self, head: Path) -> None:
        """Write it beside a head. Raises UnderstudyError where that cannot be written."""
        temporary = head / f"{FILE}.partial"
        try:
            temporary.write_text(json.dumps({"understudy_pace": VERSION, **vars(self)}, indent=1) + "\n", encoding="utf-8")
            temporary.replace(head / FILE)
        except OSError as error:
            raise UnderstudyError(f"Cannot write {head / FILE}: {error.strerror}.") from None

    @classmethod
    def beside(cls, head: Path) -> Start:
        """What is known of a head; what is always expected where there is no file.

        Raises UnderstudyError for a file that says something else."""
        path = head / FILE
        if not path.is_file():
            return START
        wrong = UnderstudyError(f"{path} is not what `understudy scale` writes: delete it, and drafts start without it.")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            version = found.pop("understudy_pace")
            start = cls(**{name: float(value) for name, value in found.items()})
        except OSError as error:
            raise UnderstudyError(f"Cannot read {path}: {error.strerror}.") from None
        except (AttributeError, KeyError, TypeError, ValueError):
            raise wrong from None
        sensible = start.tokens_per_pass >= 1 and start.pass_nodes >= 0 and start.shared_nodes >= 0
        if version != VERSION or not sensible or not all(map(math.isfinite, vars(start).values())):
            raise wrong
        return start


START = Start()
"""What is expected where nothing was measured."""

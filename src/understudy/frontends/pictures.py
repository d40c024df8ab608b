"""Pictures that commands draw with matplotlib, which is an extra."""

from pathlib import Path
from typing import Any

from ..errors import UnderstudyError


def check(path: Path) -> None:
    """Raise UnderstudyError, before anything is measured, where no picture can be written to `path`."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UnderstudyError("--plot needs matplotlib: pip install matplotlib.") from None
    kinds = Figure().canvas.get_supported_filetypes()
    if path.suffix and path.suffix[1:].lower() not in kinds:
        raise UnderstudyError(f"Cannot write the picture to {path}: {path.suffix} is none of {', '.join(sorted(kinds))}.")
    if path.is_dir():
        raise UnderstudyError(f"Cannot write the picture to {path}: it is a directory.")
    if not path.parent.is_dir():
        raise UnderstudyError(f"Cannot write the picture to {path}: there is no directory {path.parent}.")


def save(figure: Any, path: Path) -> None:
    """Write a matplotlib Figure to `path`. Raises UnderstudyError where that cannot be written."""
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UnderstudyError(f"Cannot write the picture to {path}: {error}.") from None

"""Numbers of bytes as people write them."""

import re

from ..errors import UsageError

UNITS = {"": 1, "b": 1} | {
    f"{letter}{ending}": base**power
    for power, letter in enumerate("kmgt", start=1)
    for ending, base in (("", 1024), ("ib", 1024), ("b", 1000))
}


def parse_size(text: str | int, what: str = "size") -> int:
    """Bytes: 8GiB and 8G are 8 * 2**30, 8GB is 8 * 10**9, a bare number is bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)", str(text).strip())
    if not match or match[2].lower() not in UNITS:
        raise UsageError(f"{what} {text!r} is not a number of bytes. Write it like 8GiB, 3.5GB, 500MB or 4000000000.")
    return int(float(match[1]) * UNITS[match[2].lower()]) if match[2] else int(float(match[1]))


def whole_mib(nbytes: int) -> str:
    """Whole MiB, rounded up, so that a budget which is named does work."""
    return f"{-(-nbytes // (1 << 20))} MiB"


def format_size(nbytes: float) -> str:
    """1.5 GiB, 37 MiB, 812 B: three figures at most."""
    assert nbytes >= 0, f"{nbytes} bytes"
    unit = "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if nbytes < 1000:
            break
        nbytes, unit = nbytes / 1024, larger
    if unit == "B" or nbytes >= 99.95:
        return f"{nbytes:.0f} {unit}"
    return f"{nbytes:.1f} {unit}".replace(".0 ", " ")

"""What goes wrong in a replica, in one line: Ray tells it as the traceback of another process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ray.exceptions import RayError

from .. import errors
from ..errors import UnderstudyError, first_line

# An error of this package at the end of a traceback.
OWN = re.compile(r"understudy\.errors\.(\w+): (.+)")


@contextmanager
def told(what: str) -> Iterator[None]:
    """What Ray raises inside becomes an UnderstudyError: a replica's own one where there is one, else `what` and Ray's words."""
    try:
        yield
    except UnderstudyError:
        raise
    except (RayError, RuntimeError) as error:
        raise plain(str(error), f"{what}: {first_line(error)}.") from None


def plain(told: str, otherwise: str) -> UnderstudyError:
    """The error of this package that `told`, what Ray says of a failure, ends with; `otherwise` where there is none."""
    found = OWN.findall(told)
    if not found:
        return UnderstudyError(otherwise)
    name, message = found[-1]
    kind = getattr(errors, name, UnderstudyError)
    return kind(message.strip()) if issubclass(kind, UnderstudyError) else UnderstudyError(message.strip())

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
# What Ray tells of an actor that has died: facts, one in each line, and then of what.
DIED = re.compile(r"The actor died unexpectedly[^\n]*\n(?P<facts>(?:\t[^\n]*\n?)+)(?P<why>[^\n]*)")
# An actor that could not be made: the traceback of what made it, whose last line is the error.
UNMADE = "an error raised in its creation task"
# Who dies, in words.
ACTORS = {"ServeController": "the controller of Ray Serve", "ProxyActor": "the proxy of Ray Serve", "ServeReplica": "a replica"}
# What Ray says of an actor that it ended itself, and why it does so while we wait.
KILLED = "killed by `ray.kill`"
GIVEN_UP = "Ray ended it, since it did not start in time. Try again when the machine is less busy"
# What Ray's guesses begin with where a process ended without a word, and ours.
GUESSES = " Some common causes include"
MEMORY = ". The system may have ended it for its memory: its log says so"
# Characters of Ray's own words that are told.
MOST = 400


@contextmanager
def told(what: str) -> Iterator[None]:
    """What Ray raises inside becomes an UnderstudyError: a replica's own one where there is one, else `what` and Ray's words."""
    try:
        yield
    except UnderstudyError:
        raise
    except (RayError, RuntimeError, TimeoutError) as error:
        raise plain(str(error), f"{what}: {reason(str(error)) or first_line(error)}.") from None


def plain(told: str, otherwise: str) -> UnderstudyError:
    """The error of this package that `told`, what Ray says of a failure, ends with; `otherwise` where there is none."""
    found = OWN.findall(told)
    if not found:
        return UnderstudyError(otherwise)
    name, message = found[-1]
    kind = getattr(errors, name, UnderstudyError)
    return kind(message.strip()) if issubclass(kind, UnderstudyError) else UnderstudyError(message.strip())


def reason(told: str) -> str:
    """Who died of what in `told`, what Ray says of a failure, in one line; empty: it does not tell of an actor."""
    if died := DIED.search(told):
        facts = dict(line.strip().split(": ", 1) for line in died["facts"].splitlines() if ": " in line)
        kind = facts.get("class_name", "an actor").partition(":")[0]
        where = ", ".join(f"{name} {facts[name]}" for name in ("pid", "ip") if name in facts)
        why, guesses, _ = died["why"].removeprefix("The actor is dead because ").partition(GUESSES)
        why = GIVEN_UP if KILLED in why else f"{why[:MOST].rstrip('. ')}{MEMORY if guesses else ''}"
        return f"{ACTORS.get(kind, kind)}{f' ({where})' if where else ''} has died: {why}"
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    if UNMADE in told:
        return f"a process of Ray could not start: {lines[-1][:MOST].rstrip('. ')}"
    return ""

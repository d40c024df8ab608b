"""The names of a server's models, what each is at, and who uses it."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..service import Service
from .settings import Settings


class Shelf(Protocol):
    """Where models are loaded from, by name. Its methods are called in a thread."""

    @property
    def contexts(self) -> Mapping[str, int]:
        """Tokens that each model's texts may have when it is loaded alone."""

    @property
    def exact(self) -> Mapping[str, bool]:
        """Of each model: are its texts the exact model's?"""

    def leaving(self, name: str, loaded: Mapping[str, Any]) -> list[str]:
        """Which of the `loaded` models must go so that `name` can be loaded; those used longest ago come first in `loaded`.
        UnderstudyError where it cannot be loaded whoever goes."""

    def load(self, name: str, beside: Mapping[str, Any], ended: threading.Event) -> Any:
        """The LLM called `name`, loaded while those of `beside` stay. Raises UnderstudyError; also once `ended` is set."""

    def close(self) -> None:
        """Nothing is loaded any more."""


@dataclass(frozen=True)
class ServedModel:
    """A model that is loaded, and what runs its requests."""

    llm: Any
    service: Service
    # Those of the server, with the name of this model.
    settings: Settings


@dataclass
class ModelPlace:
    """One name of a server."""

    name: str
    # None: it is not loaded.
    served: ServedModel | None = None
    # Leases that are held.
    users: int = 0
    # Those who wait for a lease, and since when by the clock of the event loop.
    waiting: deque[tuple[float, asyncio.Future[None]]] = field(default_factory=deque)
    # Does it take no more requests, since others have waited long enough?
    closed: bool = False
    # Is it being loaded?
    loading: bool = False
    # When it was loaded, and last used, by the clock of the event loop.
    since: float = 0.0
    used: float = 0.0

    @property
    def open(self) -> bool:
        """Can it be used at once?"""
        return self.served is not None and not self.closed

    @property
    def status(self) -> str:
        """What it is at, in a word: loaded, loading or unloaded."""
        if self.served is not None:
            return "loaded"
        return "loading" if self.loading else "unloaded"


class Lease:
    """The right to use a model, which stays loaded until `release`. Releasing it again does nothing."""

    def __init__(self, place: ModelPlace, released: Callable[[ModelPlace], None]):
        assert place.served is not None, f"{place.name} is not loaded"
        self.served = place.served
        self._place: ModelPlace | None = place
        self._released = released

    def release(self) -> None:
        """Give the model back."""
        place, self._place = self._place, None
        if place is not None:
            self._released(place)

"""The models of a server, by name: some are loaded, others are loaded when a request asks for them.

A model that is used is never unloaded. One that must make way for another takes no more requests once the others have waited for a
turn, and goes when its last request has ended. All of this lives in one event loop; loading runs in a thread beside it."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from ..api.asking import no_model
from ..errors import Caught, UnderstudyError
from ..service import Service, Unavailable
from .metrics import Metrics
from .places import Lease, ModelPlace, ServedModel, Shelf
from .settings import Settings

# Seconds that a model which is used keeps its place while others are waited for.
TURN = 30.0
log = logging.getLogger("understudy.server")


class ServedModels:
    """The models called `names`, of which the first answers requests that name none.

    `shelf`: where they are loaded from; None: nothing is loaded or unloaded here, and whoever `put` a model closes it.
    `turn`: seconds that a model which is used keeps its place while others are waited for."""

    def __init__(self, names: Sequence[str], settings: Settings, shelf: Shelf | None = None, turn: float = TURN):
        self.settings = settings
        self.places = {name: ModelPlace(name) for name in names}
        self.first = names[0]
        self.shelf = shelf
        self.turn = turn
        self.began = int(time.time())
        self.draining = False
        self.metrics = Metrics(self.places)
        # The task that loads what is waited for, while anything is.
        self._bringing: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        # Held while models are unloaded and loaded; what ends that before its time.
        self._exchanging = threading.Lock()
        self._ended = threading.Event()

    @classmethod
    def of(cls, llm: Any, settings: Settings) -> ServedModels:
        """One model, which was loaded by somebody else."""
        models = cls([settings.model_name], settings)
        models.put(settings.model_name, llm)
        return models

    def put(self, name: str, llm: Any) -> ServedModel:
        """Serve `llm` by this name. Its passes run once its service is started."""
        service = Service(llm, self.settings.max_queue, partial(self.metrics.ended, name))
        if self.draining:
            service.drain()
        self.metrics.loaded(name, llm)
        self.places[name].served = served = ServedModel(llm, service, replace(self.settings, model_name=name))
        return served

    @property
    def loaded(self) -> dict[str, ServedModel]:
        """The models that are loaded, by name; those used longest ago come first."""
        places = sorted(self.places.values(), key=lambda place: (place.users > 0, place.used))
        return {place.name: place.served for place in places if place.served is not None}

    @property
    def fault(self) -> str:
        """Why a model that is loaded can run nothing any more; empty while all is well."""
        return next(filter(None, (served.service.fault for served in self.loaded.values())), "")

    @property
    def trouble(self) -> str:
        """Why no request would be served, in words; empty: it would."""
        troubles = (served.service.trouble for served in self.loaded.values())
        return "it is shutting down" if self.draining else next(filter(None, troubles), "")

    def start(self) -> None:
        """Run passes of the models that are loaded, and of those that will be."""
        for served in self.loaded.values():
            served.service.start()

    def drain(self) -> None:
        """Take no more requests; those that run go on, those that wait for their model are refused, and it is not loaded.

        Called in any thread."""
        self.draining = True
        self._ended.set()
        for served in self.loaded.values():
            served.service.drain()
        if self._loop is not None:
            # The loop may be gone.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._refuse_all)

    def abandon(self, why: str) -> None:
        """End all requests with the error `why`."""
        for served in self.loaded.values():
            served.service.abandon(why)

    def close(self) -> None:
        """End all passes; models that were loaded from the shelf are closed. Not for the thread of the event loop."""
        self.drain()
        with self._exchanging:
            for name in self.loaded:
                self._unload(name)
            if self.shelf is not None:
                self.shelf.close()

    def place(self, name: str | None) -> ModelPlace:
        """The place called `name`; none is the first. Raises ApiError (404) for one that is not here."""
        found = self.places.get(name or self.first)
        if found is None:
            raise no_model(str(name), list(self.places))
        return found

    def shown(self, name: str | None) -> ServedModel:
        """The model called `name`; where it is not loaded, the one that is loaded and was used last.

        Raises ApiError (404) for one that is not here, Unavailable where none is loaded."""
        served = self.place(name).served or next(reversed(self.loaded.values()), None)
        if served is None:
            raise Unavailable("No model is loaded now: another one is on its way.", retry_after=5)
        return served

    def context(self, place: ModelPlace) -> int:
        """The most tokens that a text of this model may have: where it is not loaded, when it is loaded alone."""
        if place.served is not None:
            return int(place.served.llm.context)
        return 0 if self.shelf is None else self.shelf.contexts[place.name]

    def exact(self, place: ModelPlace) -> bool:
        """Are the texts of this model the exact model's? Keys and values of 8 bits are for those who ask for them."""
        if place.served is not None:
            return not place.served.llm.plan.kv_bits
        return self.shelf is None or self.shelf.exact[place.name]

    async def lease(self, name: str | None) -> Lease:
        """The right to use a model, once it is loaded. Cancelling gives up the wait.

        Raises ApiError (404) for a model that is not here, Unavailable where too many wait or the server shuts down, and what
        kept the model from being loaded."""
        place = self.place(name)
        if self.draining:
            raise self._refusal()
        if place.open:
            place.users += 1
            return Lease(place, self.released)
        if len(place.waiting) >= self.settings.max_queue:
            raise Unavailable(f"{len(place.waiting)} requests wait for {place.name} already: try again later.", retry_after=10)
        self._loop = loop = asyncio.get_running_loop()
        entry = (loop.time(), loop.create_future())
        place.waiting.append(entry)
        self._bring_all()
        try:
            await entry[1]
        except asyncio.CancelledError:
            # Cancelled after it was let in, and before it knew.
            if entry[1].done() and not entry[1].cancelled() and entry[1].exception() is None:
                self.released(place)
            raise
        finally:
            if entry in place.waiting:
                place.waiting.remove(entry)
            self._changed.set()
        return Lease(place, self.released)

    def released(self, place: ModelPlace) -> None:
        """One user less."""
        place.users -= 1
        place.used = asyncio.get_running_loop().time()
        self._changed.set()

    def _bring_all(self) -> None:
        """Have what is waited for loaded, if that is not under way."""
        if self._bringing is None and self._next() is not None:
            self._bringing = asyncio.get_running_loop().create_task(self._bring_in_turn())

    def _next(self) -> ModelPlace | None:
        """Of the models that are waited for and not loaded, the one that was asked for first."""
        asked = [place for place in self.places.values() if place.waiting and place.served is None]
        return min(asked, key=lambda place: place.waiting[0][0], default=None)

    async def _bring_in_turn(self) -> None:
        """Load one model after the other, until nobody waits."""
        try:
            while (wanted := self._next()) is not None:
                with Caught() as bug:
                    await self._bring(wanted)
                if bug.error is not None:
                    self._tell_waiting(wanted, self._refusal() if self.draining else bug.error)
                for place in self.places.values():
                    place.closed = False
                    if place.served is not None:
                        self._let_in(place)
        finally:
            self._bringing = None

    async def _bring(self, wanted: ModelPlace) -> None:
        """Load a model, once those that must make way for it are used no more. Raises what keeps it from being loaded."""
        assert self.shelf is not None, f"{wanted.name} is not loaded, and nothing loads it"
        # It is found out first whether it can be loaded at all: if not, the others stay.
        names = await asyncio.to_thread(self._leaving, wanted)
        if not await self._vacated([self.places[name] for name in names], wanted):
            return
        wanted.loading = True
        try:
            await asyncio.to_thread(self._exchange, wanted, names)
            wanted.since = asyncio.get_running_loop().time()
        finally:
            wanted.loading = False

    async def _vacated(self, leaving: Sequence[ModelPlace], wanted: ModelPlace) -> bool:
        """Wait until nobody uses the models that leave, and close them. False: nobody waits for `wanted` any more."""
        loop = asyncio.get_running_loop()
        asked = wanted.waiting[0][0] if wanted.waiting else 0.0
        over = max([asked, *(place.since for place in leaving)]) + self.turn
        while wanted.waiting and any(place.users for place in leaving):
            left = over - loop.time()
            for place in leaving:
                place.closed = place.closed or left <= 0
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left if left > 0 else None):
                    await self._changed.wait()
        for place in leaving:
            place.closed = True
        return bool(wanted.waiting)

    def _leaving(self, wanted: ModelPlace) -> list[str]:
        """Which models must go for the one that is wanted; runs in a thread."""
        assert self.shelf is not None
        return self.shelf.leaving(wanted.name, {name: served.llm for name, served in self.loaded.items()})

    def _exchange(self, wanted: ModelPlace, leaving: Sequence[str]) -> None:
        """Unload the models that leave and load the one that is wanted; runs in a thread."""
        assert self.shelf is not None
        with self._exchanging:
            if self._ended.is_set():
                raise self._refusal()
            for name in leaving:
                self._unload(name)
            # What is left of them in cycles holds their memory.
            gc.collect()
            beside = {name: served.llm for name, served in self.loaded.items()}
            served = self.put(wanted.name, self.shelf.load(wanted.name, beside, self._ended))
            served.service.start()

    def _unload(self, name: str) -> None:
        """End the passes of a model, and close it where it came from the shelf."""
        place = self.places[name]
        assert place.served is not None, f"{name} is not loaded"
        place.served.service.close()
        self.metrics.unloaded(name)
        if self.shelf is not None:
            place.served.llm.close()
        place.served = None

    def _let_in(self, place: ModelPlace) -> None:
        """Give a lease to all who wait for this model."""
        for _, waiter in place.waiting:
            if not waiter.done():
                place.users += 1
                waiter.set_result(None)
        place.waiting.clear()

    def _tell_waiting(self, place: ModelPlace, error: Exception) -> None:
        """Those who wait for this model hear why it is not loaded."""
        told: Exception = error
        if not isinstance(error, UnderstudyError):
            log.error("the model %s could not be loaded", place.name, exc_info=error)
        elif not isinstance(error, Unavailable):
            told = UnderstudyError(f"The model {place.name!r} cannot be loaded: {error}")
            log.error("%s", told)
        for _, waiter in place.waiting:
            if not waiter.done():
                waiter.set_exception(told)
        place.waiting.clear()

    def _refuse_all(self) -> None:
        """Nobody waits for a model that will not be loaded any more."""
        for place in self.places.values():
            self._tell_waiting(place, self._refusal())

    def _refusal(self) -> Unavailable:
        return Unavailable(f"No request is taken: {self.trouble}.", retry_after=5)

"""What a tier for a GPU asks of it, and one copy to it under way."""

import threading
from typing import Any, Protocol

from torch import Tensor

from ..errors import UnderstudyError


class Streams(Protocol):
    """The few things asked of a device; streams and events are whatever the device makes of them.

    All but `register` and `unregister` may be called from two threads at once."""

    def register(self, memory: Tensor) -> str:
        """Pin host memory so that it is copied at full speed; why not, if not."""
        ...

    def unregister(self, memory: Tensor) -> None: ...

    def copy_stream(self) -> Any:
        """A stream whose work runs beside that of the current one."""
        ...

    def current_stream(self) -> Any:
        """The stream the caller's own work goes to."""
        ...

    def record(self, stream: Any) -> Any:
        """An event that happens when all work given to `stream` so far is done."""
        ...

    def await_event(self, stream: Any, event: Any) -> None:
        """Work given to `stream` from now on begins after `event`. Does not block the host."""
        ...

    def copy(self, stream: Any, source: Tensor, into: Tensor) -> None:
        """Give `stream` the work of copying host bytes to the device."""
        ...

    def happened(self, event: Any) -> bool: ...

    def block_until(self, event: Any) -> None:
        """Block the host until `event` has happened."""
        ...

    def seconds_between(self, first: Any, last: Any) -> float:
        """Device time between two events that have happened."""
        ...

    def finish(self, stream: Any) -> None:
        """Block the host until `stream` has done all it was given."""
        ...


class PinnedFetch:
    """A copy asked for. Once it is with the copy stream, the link works for it from `begun` on; with `arrived` it is there."""

    def __init__(self, device: Streams, stream: Any, index: int, into: Tensor, after: tuple[Any, ...]) -> None:
        self.index, self.into, self.nbytes, self.after = index, into, into.numel(), after
        self.begun: Any = None
        self.arrived: Any = None
        self._device, self._stream = device, stream
        self._settled = threading.Event()
        self._error: UnderstudyError | None = None
        # when the caller's stream came to where it needs the copy
        self._asked: Any = None

    def begin(self, source: Tensor) -> None:
        """Give the copy to the stream: after the releases that make room for it. Does not block the host."""
        for event in self.after:
            self._device.await_event(self._stream, event)
        self.begun = self._device.record(self._stream)
        self._device.copy(self._stream, source[: self.nbytes], self.into)
        self.arrived = self._device.record(self._stream)
        self._settled.set()

    def fail(self, error: UnderstudyError) -> None:
        """The copy will never be made, unless it has been given to the stream already."""
        if not self._settled.is_set():
            self._error = error
            self._settled.set()

    def done(self) -> bool:
        return self._settled.is_set() and (self._error is not None or bool(self._device.happened(self.arrived)))

    def wait(self) -> None:
        """The caller's stream waits; the host goes on, once the bytes have left the disk."""
        self._settled.wait()
        if self._error is not None:
            raise type(self._error)(str(self._error))
        stream = self._device.current_stream()
        self._asked = self._device.record(stream)
        self._device.await_event(stream, self.arrived)

    def waited(self) -> float:
        """Seconds that the caller's stream waited, as far as that is known."""
        if self._asked is None or not self._device.happened(self._asked):
            return 0.0
        return max(0.0, self._device.seconds_between(self._asked, self.arrived))

"""The second moments of Linears' inputs while weights are encoded: the exact model reads a text in a thread of its own.

It is ahead of the weights that are asked for by LEAD bytes at most, so that what it read of a checkpoint is still in memory when it
is encoded: a model larger than that comes from the disk once, not twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import accumulate
from threading import Condition, Thread

from ..quantizers.inputs import Inputs
from .mixing import Moments

LEAD = 512 << 20
# takes what is known of the inputs of the next Linear, in the order of a pass; None: nothing
Note = Callable[[Inputs | None], None]
# gives a `Note` all Linears
Measure = Callable[[Note], None]


class Measuring:
    """The inputs of each of some weights as `measure` finds them; `sizes`: their bytes. It begins when first asked."""

    def __init__(self, measure: Measure, sizes: Sequence[int]) -> None:
        self._measure = measure
        self._found: list[Future[Inputs | None]] = [Future() for _ in sizes]
        # where each weight begins
        self._starts = [0, *accumulate(sizes)][:-1]
        self._noted = 0
        # where the furthest weight begins that somebody waits for, or waited
        self._asked = 0
        self._closed = False
        # None: as far as it likes
        self._lead: int | None = LEAD
        self._changed = Condition()
        self._thread: Thread | None = None

    def of(self, index: int) -> Future[Inputs | None]:
        """What will be known of the inputs of this weight."""
        with self._changed:
            self._asked = max(self._asked, self._starts[index])
            self._changed.notify_all()
        self._begin()
        return self._found[index]

    def all(self) -> Moments:
        """What is known of all, once it is. Raises what `measure` raised."""
        with self._changed:
            self._lead = None
            self._changed.notify_all()
        self._begin()
        return [found.result() for found in self._found]

    def close(self) -> None:
        """Stop measuring; who still waits is told so by CancelledError."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for found in self._found:
            found.cancel()
        if self._thread is not None:
            self._thread.join()

    def _begin(self) -> None:
        if self._thread is None:
            self._thread = Thread(target=self._run, name="understudy-measuring", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            self._measure(self._note)
            assert self._noted == len(self._found), f"{self._noted} of {len(self._found)} Linears were measured"
        except _Closed:
            return
        except BaseException as problem:  # noqa: BLE001 - whoever waits for inputs gets it, whatever it is
            for found in self._found[self._noted :]:
                if found.set_running_or_notify_cancel():
                    found.set_exception(problem)

    def _note(self, inputs: Inputs | None) -> None:
        index = self._noted
        with self._changed:
            self._changed.wait_for(lambda: self._may_go_on(index))
            if self._closed:
                raise _Closed
            self._noted += 1
        self._found[index].set_result(inputs)

    def _may_go_on(self, index: int) -> bool:
        return self._closed or self._lead is None or self._starts[index] - self._asked < self._lead


class _Closed(Exception):
    """Nobody asks any more."""

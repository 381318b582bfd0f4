"""Requests of a burst are admitted one after the other, not all at the same pace.

A process runs one thread's Python at a time. With a hundred requests at once each would get its
hundredth, all of them would reach the workers late, together, and the engine would stand idle
until then; their threads would spend more on taking the interpreter from each other than on the
requests. One after the other, the first is on its way after its own two milliseconds. Only the way
into the queue is serialized, never a wait for an answer.
"""

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

#: Whoever has waited this long goes on regardless: a Redis that hangs must not hold up the whole process. Seconds.
MAX_WAIT_SECONDS = 0.25

P = ParamSpec("P")
T = TypeVar("T")


class AdmissionGate:
    """Lets one thread through at a time."""

    def __init__(self, max_wait: float = MAX_WAIT_SECONDS) -> None:
        self._max_wait = max_wait
        # More than one would take the interpreter from each other; it is free only while one waits for Redis.
        self._semaphore = threading.Semaphore(1)
        self._local = threading.local()

    @property
    def held(self) -> bool:
        """Whether the current thread is the one that was let through."""
        return bool(getattr(self._local, "held", False))

    def serialized(self, view: Callable[P, T]) -> Callable[P, T]:
        """Decorate what admits requests: it waits to be let through, until :meth:`release` or the call's end."""

        @functools.wraps(view)
        def admit(*args: P.args, **kwargs: P.kwargs) -> T:
            self._local.held = self._semaphore.acquire(timeout=self._max_wait)
            try:
                return view(*args, **kwargs)
            finally:
                self.release()

        return admit

    def release(self) -> None:
        """This thread's request is on its way: let the next one through. Does nothing for a thread that was not."""
        if self.held:
            self._local.held = False
            self._semaphore.release()


_gate = AdmissionGate()
serialized = _gate.serialized
release = _gate.release

"""Requests of a burst come in one after the other, not all at the same pace.

A process runs one thread's Python at a time. With a hundred requests at once each would get its
hundredth, all of them would reach the workers late, together, and the engine would stand idle
until then; their threads would spend more on taking the interpreter from each other than on the
requests. In turn, the first is on its way after its own two milliseconds. Only the way into the
queue is walked in turn, never a wait for an answer.
"""

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

#: More would take the interpreter from each other; it is free only while one waits for Redis.
AT_ONCE = 1
#: Who has waited this long goes on regardless: a Redis that hangs must not hold up the whole process. Seconds.
PATIENCE_SECONDS = 0.25

P = ParamSpec("P")
T = TypeVar("T")

_turns = threading.Semaphore(AT_ONCE)
_mine = threading.local()


def in_turn(view: Callable[P, T]) -> Callable[P, T]:
    """Decorate what takes requests in: it waits for its turn, which ends with :func:`over` or with the call."""

    @functools.wraps(view)
    def walk(*args: P.args, **kwargs: P.kwargs) -> T:
        _mine.held = _turns.acquire(timeout=PATIENCE_SECONDS)
        try:
            return view(*args, **kwargs)
        finally:
            over()

    return walk


def over() -> None:
    """The request of this thread is on its way: the next one may come. Does nothing without a turn."""
    if getattr(_mine, "held", False):
        _mine.held = False
        _turns.release()

"""Waiting for something to become true, with a bound and a message."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], seconds: float, what: str) -> T:
    """Return the first true value of ``condition``; fail with ``what`` when the time is over."""
    ends = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > ends:
            raise AssertionError(f"after {seconds} s still not: {what}")
        time.sleep(0.02)

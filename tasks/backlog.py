"""How many requests wait in a queue, for admission: far from the bound it is counted a few times a second."""

import threading
import time
from dataclasses import dataclass

import redis

from tasks import queues

#: How old a count may be. Seconds.
_CACHE_SECONDS = 0.25


@dataclass
class _Count:
    at: float = 0.0
    waiting: int = 0
    #: Admitted since; most of them have left the queue already.
    admitted: int = 0


class Backlog:
    """Counts for the threads of one process."""

    def __init__(self, redis_client: redis.Redis) -> None:
        self._redis = redis_client
        self._counts: dict[str, _Count] = {}
        self._lock = threading.Lock()

    def pending(self, queue: str, bound: int) -> int:
        """Return how many requests wait in ``queue``; exact when it may be near ``bound``."""
        now = time.monotonic()
        with self._lock:
            count = self._counts.setdefault(queue, _Count())
            count.admitted += 1
            if now - count.at < _CACHE_SECONDS and count.waiting + count.admitted < bound / 2:
                return count.waiting
        waiting = queues.pending(self._redis, [queue])
        with self._lock:
            self._counts[queue] = _Count(now, waiting)
        return waiting

"""How many requests wait in a queue, for admission: far from the bound it is counted a few times a second."""

import threading
import time
from dataclasses import dataclass

import redis

from tasks.broker import queues

#: How old a count may be; it is refreshed before. Seconds.
_CACHE_SECONDS = 0.5
#: A queue that nothing was admitted to for this long is not counted. Seconds.
_UNUSED_SECONDS = 60.0


@dataclass
class _Count:
    at: float = 0.0
    waiting: int = 0
    #: Admitted since; most of them have left the queue already.
    admitted: int = 0
    asked: float = 0.0


class QueueDepth:
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
            count.asked = now
            if now - count.at < _CACHE_SECONDS and count.waiting + count.admitted < bound / 2:
                return count.waiting
        return self._count(queue, now)

    def refresh(self) -> None:
        """Count again what was asked for lately. Raises ``redis.RedisError``."""
        now = time.monotonic()
        with self._lock:
            self._counts = {
                queue: count for queue, count in self._counts.items() if now - count.asked < _UNUSED_SECONDS
            }
            asked = list(self._counts)
        for queue in asked:
            self._count(queue, now)

    def _count(self, queue: str, now: float) -> int:
        waiting = queues.pending(self._redis, [queue])
        with self._lock:
            count = self._counts.setdefault(queue, _Count(asked=now))
            count.at, count.waiting, count.admitted = now, waiting, 0
        return waiting

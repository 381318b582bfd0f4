"""Requests that go on without a client: looked after for some seconds behind each look at them.

Nobody follows them, and so what their logs say is read here: whose worker has taken one, and whether it has ended.
"""

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field

import redis

from services.inference.watched_request import WatchedRequest
from store.redis.presence import Fleet
from store.redis.request_records import RequestRecord
from store.token_log import log as token_log
from store.token_log.entries import START, EntryId

#: How long one is looked after behind a look at it. Seconds; clients ask every few.
LOOK_AFTER_SECONDS = 15.0


@dataclass
class _Unattended:
    watched: WatchedRequest
    #: Ends the watch.
    stack: ExitStack
    #: When it is over (``time.monotonic``).
    ends: float
    #: The last entry of its log that was read.
    position: EntryId = field(default=START)


class Unattended:
    """Those of one process. ``watch`` is failover's."""

    def __init__(
        self,
        client: redis.Redis,
        watch: Callable[[RequestRecord, str, Fleet | None], AbstractContextManager[WatchedRequest]],
    ) -> None:
        self._redis = client
        self._watch = watch
        self._requests: dict[str, _Unattended] = {}
        self._lock = threading.Lock()

    def look_after(self, record: RequestRecord, queue: str = "", fleet: Fleet | None = None) -> None:
        """Look after a request from now on; ``queue`` and ``fleet`` are known of one that was just sent."""
        ends = time.monotonic() + LOOK_AFTER_SECONDS
        with self._lock:
            known = self._requests.get(record.id)
            if known is not None:
                known.ends = ends
                return
            stack = ExitStack()
            watched = stack.enter_context(self._watch(record, queue, fleet))
            self._requests[record.id] = _Unattended(watched, stack, ends)

    def refresh(self) -> None:
        """Read what is new in the logs, and forget who was not asked for any more. Raises ``redis.RedisError``."""
        with self._lock:
            for request_id, one in list(self._requests.items()):
                if time.monotonic() >= one.ends:
                    del self._requests[request_id]
                    one.stack.close()
            requests = list(self._requests.items())
        for request_id, one in requests:
            for entry in token_log.read(self._redis, request_id, one.position):
                one.watched.observe(entry)
                one.position = entry.id

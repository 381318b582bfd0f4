"""One reader of one token log, woken by the hub."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol

import redis
from redis.exceptions import RedisError

from store.redis import keys as redis_keys
from store.token_log import log as token_log
from store.token_log.entries import Entry, EntryId

log = logging.getLogger(__name__)

#: Entries that wait for a follower; when more come, it reads the log instead, as many at a time.
MAX_WAITING = 64
#: A follower that hears nothing looks into the log this often, whatever pub/sub does. Seconds.
_RECHECK_SECONDS = 5.0
#: The same for the log of a request that was just sent. Seconds. Mostly its first entries are published before.
_FIRST_LOOK_SECONDS = 0.25
#: The same after a look that failed. Seconds.
_RETRY_SECONDS = 0.5


class Registry(Protocol):
    """Who hands published entries to followers: the hub."""

    def register(self, follower: "Follower") -> None: ...

    def unregister(self, follower: "Follower") -> None: ...


class Follower:
    """Reads one log to its end. Belongs to one thread; the hub's thread calls the methods at the end."""

    def __init__(
        self, registry: Registry, client: redis.Redis, request_id: str, after: EntryId, may_have_history: bool
    ) -> None:
        self._registry = registry
        self._client = client
        self.request_id = request_id
        #: The last entry that was given out.
        self.position = after
        #: When that was (``time.monotonic``).
        self.last_entry_at = time.monotonic()
        self._next_read = self.last_entry_at + (_RECHECK_SECONDS if may_have_history else _FIRST_LOOK_SECONDS)
        self.channel = redis_keys.log_channel(request_id).encode()
        self._arrived = threading.Condition(threading.Lock())
        self._queue: deque[tuple[EntryId, Entry]] = deque()
        self._must_read = False
        self._waiting_for_entry = False
        self._shortcut: Callable[[Entry], bool] | None = None
        self._interrupted = False
        #: Whether there may be entries from before the subscription.
        self._may_have_history = may_have_history

    def __enter__(self) -> "Follower":
        self._registry.register(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._registry.unregister(self)

    @property
    def waiting(self) -> int:
        """Entries that wait to be given out; never more than ``MAX_WAITING``."""
        return len(self._queue)

    @property
    def overflowed(self) -> bool:
        """Whether more has come than could wait, so that the log will be read."""
        return self._must_read

    def set_direct_handler(self, handle: Callable[[Entry], bool] | None) -> None:
        """Let the hub's thread offer entries to ``handle`` while this follower's own thread sleeps.

        ``handle`` must not wait. What it takes (True) is not yielded by :meth:`entries`; what it
        refuses is, in its order. It is never called while the own thread is awake.
        """
        with self._arrived:
            self._shortcut = handle

    def interrupt(self) -> None:
        """Let :meth:`entries` yield None at once, from any thread."""
        with self._arrived:
            self._interrupted = True
            self._arrived.notify()

    def entries(self, idle: float) -> Iterator[Entry | None]:
        """Yield every entry up to the terminal one; None whenever ``idle`` seconds yielded none.

        Never ends without a terminal entry: the caller has the deadline. A Redis that is
        away shows as silence.
        """
        last_yield = time.monotonic()
        while True:
            for entry in self._next(last_yield + idle - time.monotonic()):
                self.position = entry.id
                self.last_entry_at = last_yield = time.monotonic()
                yield entry
                if entry.terminal:
                    return
            if self._interrupted or time.monotonic() - last_yield >= idle:
                self._interrupted = False
                yield None
                last_yield = time.monotonic()

    def _next(self, wait: float) -> list[Entry]:
        with self._arrived:
            self._waiting_for_entry = True
            until_look = self._next_read - time.monotonic()
            self._arrived.wait_for(self._has_work, max(0.0, min(wait, until_look)))
            self._waiting_for_entry = False
            if self._queue:
                previous, entry = self._queue.popleft()
                if entry.id <= self.position:
                    return []
                if previous == self.position:
                    return [entry]
            elif not self._must_read and time.monotonic() < self._next_read:
                return []
            else:
                self._must_read = False
        return self._read_log()

    def _has_work(self) -> bool:
        return bool(self._queue) or self._must_read or self._interrupted

    def _read_log(self) -> list[Entry]:
        # A subscription that is confirmed after this read needs another read.
        self._may_have_history = True
        self._next_read = time.monotonic() + _RECHECK_SECONDS
        try:
            found = token_log.read(self._client, self.request_id, self.position, count=MAX_WAITING)
        except (RedisError, OSError):
            log.warning("The token log cannot be read now", extra={"request_id": self.request_id})
            # Soon again, for nothing else may come that tells of what was missed.
            self._next_read = time.monotonic() + _RETRY_SECONDS
            return []
        if len(found) == MAX_WAITING:
            # Only so much at a time, for a reader may be slow. There may be more.
            self.request_read()
        return found

    # Called by the hub's thread.

    def on_entry(self, previous: EntryId, entry: Entry) -> None:
        """Take an entry that was published with the id before it. Never waits."""
        with self._arrived:
            if (
                self._waiting_for_entry
                and self._shortcut is not None
                and not self._queue
                and previous == self.position
                and self._shortcut(entry)
            ):
                self.position = entry.id
                self.last_entry_at = time.monotonic()
                self._next_read = self.last_entry_at + _RECHECK_SECONDS
                return
            if len(self._queue) < MAX_WAITING:
                self._queue.append((previous, entry))
            else:
                self._must_read = True
            self._arrived.notify()

    def on_subscribed(self) -> None:
        """From now on nothing is missed; what was said before must be read.

        A request that was just sent has said little before. Should the first of it be missed, the
        next shows the gap; should there be no next, the first look finds it.
        """
        if self._may_have_history:
            self.request_read()
        self._may_have_history = True

    def request_read(self) -> None:
        """Something may have been missed: the log must be read."""
        with self._arrived:
            self._must_read = True
            self._arrived.notify()

"""One client's view of one request, while it runs."""

import logging
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from services.access import Access
from services.context import RequestContext
from services.inference.cancellation import Cancellation
from services.inference.watched_request import WatchedRequest
from services.lifecycle import Lifecycle
from services.metrics import DISCONNECTS, StreamTimes
from store.redis.request_records import RequestRecord
from store.token_log.entries import Entry, EntryId, Kind
from store.token_log.follower import Follower

log = logging.getLogger(__name__)

#: A worker ends a request at its deadline; a front door that has got nothing this long after it
#: ends it itself. Seconds.
DEADLINE_GRACE_SECONDS = 5.0
#: How often a stream looks whether its client is still there, and its key still valid. Seconds.
_CHECK_SECONDS = 1.0


class ClientDisconnected(Exception):
    """The client has left; nobody reads the answer."""


class ProcessStopping(Exception):
    """This process was told to stop; the request goes on, and can be followed elsewhere."""


class HasOtherFollowers(Protocol):
    """What the stream asks the hub."""

    def has_other_followers(self, follower: Follower) -> bool: ...


class RequestStream:
    """The entries of a request's log, and what becomes of the request when its client leaves."""

    def __init__(
        self,
        context: RequestContext,
        record: RequestRecord,
        follower: Follower,
        watched: WatchedRequest,
        *,
        access: Access,
        cancellation: Cancellation,
        hub: HasOtherFollowers,
        lifecycle: Lifecycle,
        keepalive: float,
        chunks_before: int = 0,
        times: StreamTimes | None = None,
    ) -> None:
        """``times`` measures the request, for the client that began it."""
        self.record = record
        self._times = times
        #: Chunks that the client had before: the index of the next one.
        self.chunks_before = chunks_before
        #: When a worker had taken it (``time.monotonic``), the last one that did.
        self.opened_at: float | None = None
        #: Set when the request shall go on without this client.
        self.detached = record.detached
        #: Whether a stopping process serves it to its end, as long as it is let.
        self.finish_when_stopping = False
        self._context = context
        self._follower = follower
        self._watched = watched
        self._access = access
        self._cancellation = cancellation
        self._hub = hub
        self._lifecycle = lifecycle
        self._keepalive = keepalive
        self._ended = False

    @property
    def position(self) -> EntryId:
        """The last entry that was given out."""
        return self._follower.position

    def set_direct_handler(self, handle: Callable[[Entry], bool]) -> None:
        """As ``Follower.set_direct_handler``; for entries that are neither the first nor the last of an attempt.

        To be called once :meth:`entries` has yielded something.
        """
        self._follower.set_direct_handler(handle)

    def interrupt(self) -> None:
        """Let :meth:`entries` look at once whether the client is gone, from any thread."""
        self._follower.interrupt()

    def entries(self) -> Iterator[Entry | None]:
        """Yield the log's entries, the terminal one last; None for every ``keepalive`` of silence.

        Raises ``ClientDisconnected``, ``ProcessStopping``, and ``Unauthenticated`` when the key was
        revoked meanwhile.
        """
        self._context.on_submitted()
        self._follower.set_direct_handler(self._observe_opening)
        last_keepalive_at = last_check_at = time.monotonic()
        for entry in self._follower.entries(idle=min(_CHECK_SECONDS, self._keepalive)):
            if entry is not None:
                if not self._observe_opening(entry):
                    self._watched.observe(entry)
                    if self._times is not None:
                        self._times.observe(entry)
                self._ended = entry.terminal
                yield entry
            elif self._context.disconnected():
                raise ClientDisconnected
            if self._lifecycle.stopping and not self._ended and not self.finish_when_stopping:
                self.detached = True
                raise ProcessStopping
            now = time.monotonic()
            if now - last_check_at >= _CHECK_SECONDS and not self._ended:
                # By the clock, not by silence: an answer that is gathered whole is never silent.
                last_check_at = now
                if self._context.disconnected():
                    raise ClientDisconnected
                self._require_active_key()
            if entry is not None:
                continue
            if time.time() > self.record.deadline + DEADLINE_GRACE_SECONDS:
                self._ended = True
                last = self._cancellation.end_at_deadline(self.record)
                if self._times is not None:
                    self._times.observe(last)
                yield last
                return
            if now - max(last_keepalive_at, self._follower.last_entry_at) >= self._keepalive:
                last_keepalive_at = now
                yield None

    def on_disconnect(self) -> None:
        """The client is not served any more: what nobody else reads is not generated."""
        if self._ended or self.detached:
            return
        DISCONNECTS.inc()
        try:
            if not self._hub.has_other_followers(self._follower):
                self._cancellation.release(self.record)
        except (RedisError, OSError) as error:
            # The worker itself notices that nobody follows.
            log.warning("The worker could not be told that the client left: %s", error)

    def _observe_opening(self, entry: Entry) -> bool:
        """Take note of an attempt's opening without waking the thread: there is nothing to send yet."""
        if entry.kind != Kind.OPEN:
            return False
        self.opened_at = time.monotonic()
        self._watched.observe(entry)
        if self._times is not None:
            self._times.observe(entry)
        return True

    def _require_active_key(self) -> None:
        try:
            self._access.require_active(self._context.principal)
        except SQLAlchemyError as error:
            # A stream that runs does not end because the keys cannot be looked up.
            log.warning("The key of a stream cannot be checked now: %s", error.__class__.__name__)

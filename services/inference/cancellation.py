"""The ends of a request that do not come from its worker: released, cancelled, out of time."""

import logging
import time
from typing import Any

import redis
from redis.exceptions import RedisError

from store.ending import delivered_usage, end_request
from store.redis import control
from store.redis.control import Command
from store.redis.request_records import RequestRecord
from store.token_log import log as token_log
from store.token_log import outcomes
from store.token_log.entries import LAST_SEQUENCE, Entry, EntryId, Kind, Reason, encode
from store.token_log.hub import Hub
from store.token_log.log import LogSnapshot

log = logging.getLogger(__name__)

#: How long a worker may take to end a request that was cancelled. Seconds.
_CANCEL_SECONDS = 1.5


class Cancellation:
    """Ends requests and frees what they hold. All methods raise ``redis.RedisError``."""

    def __init__(self, client: redis.Redis, hub: Hub, ttl: int) -> None:
        self._redis = client
        self._hub = hub
        #: How long a finished log is kept. Seconds.
        self._ttl = ttl

    def snapshot(self, record: RequestRecord) -> LogSnapshot:
        """Return what the log holds now."""
        return token_log.snapshot(self._redis, record.id)

    def release(self, record: RequestRecord) -> None:
        """Free what a request holds; one that is resumable goes on when its client comes back."""
        if not record.resumable:
            ended = self.snapshot(record).last is None and self._end(record, outcomes.cancelled(None))
            if not ended:
                control.send(self._redis, Command.CANCEL, record.id)
        elif not token_log.release_unopened(self._redis, record.id, record.lifetime(self._ttl), Reason.CLIENT_GONE):
            control.send(self._redis, Command.RELEASE, record.id)

    def cancel(self, record: RequestRecord) -> None:
        """End a request for good. A running one is ended by its worker, which knows the usage.

        When it returns the log has ended.
        """
        last = self.snapshot(record).last
        if last is not None and last.terminal:
            return
        if last is None or last.kind == Kind.RELEASE:
            usage = last.json().get("usage") if last else None
            self._end(record, outcomes.cancelled(usage))
            return
        control.send(self._redis, Command.CANCEL, record.id)
        ends = time.monotonic() + _CANCEL_SECONDS
        with self._hub.follow(record.id, last.id) as follower:
            for entry in follower.entries(idle=_CANCEL_SECONDS / 3):
                if entry is not None and entry.terminal:
                    return
                if time.monotonic() > ends:
                    break
        # Its worker does not answer: the log is closed here, and the worker will be refused.
        self._end(record, outcomes.cancelled(self._delivered(record)))

    def end_at_deadline(self, record: RequestRecord) -> Entry:
        """End a request whose worker did not, and return how it ended."""
        failure = outcomes.deadline_passed(record.deadline - record.created)
        data = outcomes.failed(failure)
        try:
            # What was delivered was made; only a worker knows what the prompt came to.
            data = outcomes.failed(failure, self._delivered(record))
            if not self._end(record, data):
                return token_log.read(self._redis, record.id)[-1]
        except (RedisError, OSError) as error:
            log.warning("The end of a late request could not be written: %s", error)
        return Entry(EntryId(1, LAST_SEQUENCE), Kind.END, encode(data))

    def _delivered(self, record: RequestRecord) -> dict[str, int] | None:
        return delivered_usage(self._redis, record)

    def _end(self, record: RequestRecord, data: dict[str, Any]) -> bool:
        return end_request(self._redis, record, self._ttl, data)

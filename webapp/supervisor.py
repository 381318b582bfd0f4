"""Failover: sees that the worker of a followed request is gone, and sends the next attempt.

One thread per process looks after all requests that the process follows, and keeps what requests are
admitted by (who lives, how many wait) fresh. Who wins the
claim for an attempt sends it; everyone else just goes on following. A newer attempt fences
an older one in the token log, so a worker wrongly taken for dead costs work, never text.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import redis
from redis.exceptions import RedisError

from store import outcomes, streams
from store.attempts import Attempts
from store.entries import Entry, Kind, Reason
from store.presence import SETTLE_SECONDS, Fleet, Presence
from store.requests import RequestRecord, RequestStore
from tasks import client, queues
from tasks.backlog import Backlog

log = logging.getLogger(__name__)

#: How often the requests are looked at. Seconds. With the lifetime of a worker's record
#: (``store.presence``), a lost worker is noticed within three.
TICK_SECONDS = 0.25
#: How often the queues are searched for requests that no worker has begun. Seconds.
_SCAN_SECONDS = 1.0
#: A request that is in no queue and was not begun is sent again after this long; sooner
#: when a worker has been lost since it was sent. Seconds.
_MISSING_SECONDS = 5.0
_MISSING_SECONDS_AFTER_LOSS = 1.0


@dataclass
class Watch:
    """What is known of one request. Followers tell what they see; the supervisor judges."""

    record: RequestRecord
    queue: str
    #: The attempt in charge, as far as known.
    attempt: int = 1
    #: The incarnation of the worker that opened it.
    owner: str | None = None
    #: Why the attempt let go, once it has.
    released: str | None = None
    ended: bool = False
    followers: int = 0
    #: When it was sent, and the workers that lived then.
    sent: float = field(default_factory=time.monotonic)
    fleet: frozenset[str] = frozenset()
    missing_since: float | None = None

    def saw(self, entry: Entry) -> None:
        """Take note of an entry of the log."""
        if entry.id.attempt < self.attempt:
            return
        self.attempt = entry.id.attempt
        self.missing_since = None
        if entry.kind == Kind.OPEN:
            self.owner, self.released = entry.json()["worker"], None
        elif entry.kind == Kind.RELEASE:
            self.released = entry.json()["reason"]
        elif entry.terminal:
            self.ended = True

    def resent(self, attempt: int, queue: str, fleet: Fleet) -> None:
        """The attempt was sent, by whomever."""
        self.attempt, self.queue = attempt, queue
        self.owner = self.released = self.missing_since = None
        self.sent = time.monotonic()
        self.fleet = frozenset(worker.incarnation for worker in fleet.living)


class Supervisor:
    """Watches the requests of one process."""

    def __init__(
        self, redis_client: redis.Redis, requests: RequestStore, presence: Presence, backlog: Backlog, ttl: int
    ) -> None:
        self._redis = redis_client
        self._requests = requests
        self._ttl = ttl
        self._presence = presence
        self._backlog = backlog
        self._attempts = Attempts(redis_client)
        self._watches: dict[str, Watch] = {}
        self._lock = threading.Lock()
        self._settled = 0.0
        self._scanned = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()

    @contextmanager
    def watch(self, record: RequestRecord, queue: str = "", fleet: Fleet | None = None) -> Iterator[Watch]:
        """Look after the request while the block runs; several followers may share a watch."""
        with self._lock:
            watch = self._watches.setdefault(record.id, Watch(record, queue))
            watch.followers += 1
        if fleet is not None:
            watch.fleet = frozenset(worker.incarnation for worker in fleet.living)
        try:
            yield watch
        finally:
            with self._lock:
                watch.followers -= 1
                if not watch.followers:
                    self._watches.pop(record.id, None)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stop.wait(TICK_SECONDS):
            with self._lock:
                watches = [watch for watch in self._watches.values() if not watch.ended]
            try:
                # Also while there is nothing to look after: so no request waits for these answers.
                fleet = self._presence.fleet(fresh=True)
                self._backlog.refresh()
                if watches:
                    self._look_after(watches, fleet)
            except (RedisError, OSError) as error:
                if watches:
                    log.warning("Redis is away, no worker is judged: %s", error)
                self._settled = time.monotonic() + SETTLE_SECONDS
            except Exception:
                # The thread must outlive any fault: without it nothing fails over.
                log.exception("The supervisor failed to look after its requests")

    def _look_after(self, watches: list[Watch], fleet: Fleet) -> None:
        may_judge = fleet.can_judge and time.monotonic() >= self._settled
        unopened = []
        for watch in watches:
            if watch.released is not None:
                self._send_next(watch, fleet, killed=watch.released == Reason.ENGINE_DEAD)
            elif watch.owner is None:
                unopened.append(watch)
            elif may_judge and not fleet.lives(watch.owner):
                log.warning("The worker of a request is lost", extra=_fields(watch, worker=watch.owner))
                self._send_next(watch, fleet, killed=True)
        self._look_for(unopened, fleet)

    def _look_for(self, unopened: list[Watch], fleet: Fleet) -> None:
        """Send requests again that vanished between queue and worker, or wait where nobody comes."""
        now = time.monotonic()
        due = [watch for watch in unopened if now - watch.sent >= _SCAN_SECONDS]
        if not due or now - self._scanned < _SCAN_SECONDS:
            return
        self._scanned = now
        searched = {watch.queue for watch in due if watch.queue} | client.all_queues(fleet)
        waiting = queues.waiting_ids(self._redis, searched, [watch.record.id for watch in due])
        served = client.all_queues(fleet)
        for watch in due:
            if watch.record.id in waiting:
                watch.missing_since = None
                if watch.queue and watch.queue not in served:
                    self._send_next(watch, fleet, killed=False)
            elif watch.missing_since is None:
                watch.missing_since = now
            elif now - watch.missing_since >= self._patience(watch, fleet):
                log.warning("A request vanished before a worker had begun it", extra=_fields(watch))
                self._send_next(watch, fleet, killed=False)

    @staticmethod
    def _patience(watch: Watch, fleet: Fleet) -> float:
        lost = any(not fleet.lives(incarnation) for incarnation in watch.fleet)
        return _MISSING_SECONDS_AFTER_LOSS if lost else _MISSING_SECONDS

    def _send_next(self, watch: Watch, fleet: Fleet, killed: bool) -> None:
        """Send the next attempt, if there is a worker for it and nobody else has sent it."""
        record = watch.record
        queue = client.queue_for(fleet, record.model, record.worker_hint)
        if queue is None:
            return
        claim = self._attempts.claim(record.id, watch.attempt, killed, self._ttl + int(record.deadline - time.time()))
        watch.resent(claim.attempt, queue, fleet)
        if not claim.won:
            return
        if killed and claim.poisonous:
            log.error("Request is given up, its workers die", extra=_fields(watch, kills=claim.kills))
            streams.end(self._redis, record.id, self._ttl, outcomes.failed(outcomes.given_up(claim.kills)))
            return
        log.warning("Sending the next attempt", extra=_fields(watch, attempt=claim.attempt, queue=queue))
        client.submit(self._redis, self._requests, record, queue, claim.attempt)


def _fields(watch: Watch, **more: object) -> dict[str, object]:
    return {"request_id": watch.record.id, "model": watch.record.model, **watch.record.metadata, **more}

"""Failover: sees that the worker of a followed request is gone, and sends the next attempt.

One thread per process looks after all requests that the process follows, and keeps what requests are
admitted by (who lives, how many wait) fresh. Who wins the
claim for an attempt sends it; everyone else just goes on following. A newer attempt fences
an older one in the token log, so a worker wrongly taken for dead costs work, never text.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import redis
from redis.exceptions import RedisError

from services.inference.unattended import Unattended
from services.inference.watched_request import WatchedRequest
from services.metrics import FAILOVERS, LET_GO, LOST
from store.ending import delivered_usage, end_request
from store.redis.presence import SETTLE_SECONDS, Fleet, PresenceReader
from store.redis.request_records import RequestRecord, RequestStore
from store.token_log import outcomes
from store.token_log.attempts import Attempts
from store.token_log.entries import Reason
from store.token_log.outcomes import Failure
from tasks.broker import queues, submit
from tasks.broker.queue_depth import QueueDepth

log = logging.getLogger(__name__)

#: How often the requests are looked at. Seconds. With the lifetime of a worker's record
#: (``store.redis.presence``), a lost worker is noticed within three.
TICK_SECONDS = 0.25
#: How often the queues are searched for requests that no worker has begun. Seconds.
_SCAN_SECONDS = 1.0
#: A request that is in no queue and was not begun is sent again after this long; sooner
#: when a worker has been lost since it was sent. Seconds.
_MISSING_SECONDS = 5.0
_MISSING_SECONDS_AFTER_LOSS = 1.0


class Failover:
    """Watches the requests of one process."""

    def __init__(
        self,
        redis_client: redis.Redis,
        requests: RequestStore,
        presence: PresenceReader,
        queue_depth: QueueDepth,
        ttl: int,
        unloaded: Callable[[str], bool] = lambda model: False,
        swap_wait: float = math.inf,
    ) -> None:
        """``unloaded`` says whether operators took a model away; ``swap_wait`` is how long a request waits for a model
        that a worker loads when it is asked for, in seconds."""
        self._unloaded = unloaded
        self._swap_wait = swap_wait
        self._redis = redis_client
        self._requests = requests
        self._ttl = ttl
        self._presence = presence
        self._backlog = queue_depth
        self._attempts = Attempts(redis_client)
        self._watched: dict[str, WatchedRequest] = {}
        #: Those that nobody follows.
        self.unattended = Unattended(redis_client, self.watch)
        self._lock = threading.Lock()
        self._settled = 0.0
        self._scanned = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="failover", daemon=True)
        self._thread.start()

    @contextmanager
    def watch(self, record: RequestRecord, queue: str = "", fleet: Fleet | None = None) -> Iterator[WatchedRequest]:
        """Look after the request while the block runs; several followers may share it."""
        with self._lock:
            watched = self._watched.setdefault(record.id, WatchedRequest(record, queue))
            watched.followers += 1
        if fleet is not None:
            watched.fleet = frozenset(worker.instance_id for worker in fleet.living)
        try:
            yield watched
        finally:
            with self._lock:
                watched.followers -= 1
                if not watched.followers:
                    self._watched.pop(record.id, None)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stop.wait(TICK_SECONDS):
            try:
                self.unattended.refresh()
                with self._lock:
                    watched_requests = [watched for watched in self._watched.values() if not watched.ended]
                # Also while there is nothing to look after: so no request waits for these answers.
                fleet = self._presence.fleet(fresh=True)
                self._backlog.refresh()
                if watched_requests:
                    self._check(watched_requests, fleet)
            except (RedisError, OSError) as error:
                if self._watched:
                    log.warning("Redis is away, no worker is judged: %s", error)
                self._settled = time.monotonic() + SETTLE_SECONDS
            except Exception:
                # The thread must outlive any fault: without it nothing fails over.
                log.exception("Failover failed to check its requests")

    def _check(self, watched_requests: list[WatchedRequest], fleet: Fleet) -> None:
        may_judge = fleet.is_reliable and time.monotonic() >= self._settled
        unopened = []
        for watched in watched_requests:
            if watched.held:
                continue
            if watched.released is not None:
                self._send_next(watched, fleet, worker_crashed=watched.released == Reason.ENGINE_DEAD)
            elif watched.worker is None:
                unopened.append(watched)
            elif may_judge and not fleet.is_alive(watched.worker):
                log.warning("The worker of a request is lost", extra=_log_fields(watched, worker=watched.worker))
                self._send_next(watched, fleet, worker_crashed=True)
        self._find_vanished(unopened, fleet)

    def _find_vanished(self, unopened: list[WatchedRequest], fleet: Fleet) -> None:
        """Send requests again that vanished between queue and worker, or wait where nobody comes."""
        now = time.monotonic()
        due = [watched for watched in unopened if now - watched.sent >= _SCAN_SECONDS]
        if not due or now - self._scanned < _SCAN_SECONDS:
            return
        self._scanned = now
        searched = {watched.queue for watched in due if watched.queue} | submit.all_queues(fleet)
        waiting = queues.waiting_ids(self._redis, searched, [watched.record.id for watched in due])
        for watched in due:
            if watched.record.id in waiting:
                watched.missing_since = None
                if self._waits_for_loading(watched, fleet):
                    continue
                workers = fleet.serving(watched.record.model)
                # With nobody to serve it, it may wait in a queue that others listen to; with somebody, where that is.
                served = {queue for worker in workers for queue in worker.queues} or submit.all_queues(fleet)
                if watched.queue and (watched.queue not in served or (not workers and self._is_gone(watched, fleet))):
                    self._send_next(watched, fleet, worker_crashed=False)
            elif watched.missing_since is None:
                watched.missing_since = now
            elif now - watched.missing_since >= self._patience(watched, fleet):
                log.warning("A request vanished before a worker had begun it", extra=_log_fields(watched))
                self._send_next(watched, fleet, worker_crashed=False)

    def _waits_for_loading(self, watched: WatchedRequest, fleet: Fleet) -> bool:
        """Whether a queued request's model is loaded when it is asked for; one that waited too long is ended."""
        model = watched.record.model
        if fleet.serving(model):
            return False
        if fleet.failed_on_demand(model):
            self._end(watched, outcomes.cannot_load(model))
        elif not fleet.on_demand(model):
            return False
        elif time.monotonic() - watched.sent >= self._swap_wait:
            self._end(watched, outcomes.waited_for_model(model, self._swap_wait))
        return True

    def _end(self, watched: WatchedRequest, failure: Failure) -> None:
        log.warning("A request is ended: %s", failure.message, extra=_log_fields(watched))
        usage = delivered_usage(self._redis, watched.record)
        end_request(self._redis, watched.record, self._ttl, outcomes.failed(failure, usage))

    @staticmethod
    def _patience(watched: WatchedRequest, fleet: Fleet) -> float:
        worker_lost = any(not fleet.is_alive(instance_id) for instance_id in watched.fleet)
        return _MISSING_SECONDS_AFTER_LOSS if worker_lost else _MISSING_SECONDS

    def _is_gone(self, watched: WatchedRequest, fleet: Fleet) -> bool:
        """Whether operators took the model away, and no worker was lost that might come back with it."""
        return self._unloaded(watched.record.model) and not fleet.lost and fleet.is_reliable

    def _send_next(self, watched: WatchedRequest, fleet: Fleet, worker_crashed: bool) -> None:
        """Send the next attempt, if there is a worker for it and nobody else has sent it."""
        record = watched.record
        queue = submit.queue_for(fleet, record.model, record.worker_hint)
        if queue is None:
            if watched.released == Reason.NOT_SERVED or self._is_gone(watched, fleet):
                if fleet.loading(record.model):
                    return
                # Taken away by an operator: nobody will come.
                self._end(watched, outcomes.not_served(record.model))
            return
        claim = self._attempts.claim(record.id, watched.attempt, worker_crashed, record.lifetime(self._ttl))
        watched.mark_resubmitted(claim.attempt, queue, fleet)
        if not claim.won:
            return
        if worker_crashed and claim.poisonous:
            self._end(watched, outcomes.given_up(claim.kills))
            return
        log.warning("Sending the next attempt", extra=_log_fields(watched, attempt=claim.attempt, queue=queue))
        FAILOVERS.labels(LOST if worker_crashed else LET_GO).inc()
        submit.submit(self._redis, self._requests, record, queue, claim.attempt)


def _log_fields(watched: WatchedRequest, **extra: object) -> dict[str, object]:
    return {**watched.record.log_fields, **extra}

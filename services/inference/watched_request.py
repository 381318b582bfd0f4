"""What failover knows of one request."""

import time
from dataclasses import dataclass, field

from store.redis.presence import Fleet
from store.redis.request_records import RequestRecord
from store.token_log.entries import Entry, Kind, Reason


@dataclass
class WatchedRequest:
    """What is known of one request. Followers report what they see; ``Failover`` decides."""

    record: RequestRecord
    queue: str
    #: The attempt in charge, as far as known.
    attempt: int = 1
    #: Instance id of the worker that opened it.
    worker: str | None = None
    #: Why the attempt released the request, once it has.
    released: str | None = None
    #: Whether whoever runs a batch decides when the released line goes on.
    held: bool = False
    ended: bool = False
    followers: int = 0
    #: When it was sent, and the workers that lived then.
    sent: float = field(default_factory=time.monotonic)
    fleet: frozenset[str] = frozenset()
    missing_since: float | None = None

    def observe(self, entry: Entry) -> None:
        """Take note of an entry of the log."""
        if entry.id.attempt < self.attempt:
            return
        self.attempt = entry.id.attempt
        self.missing_since = None
        if entry.kind == Kind.OPEN:
            self.worker, self.released, self.held = entry.json()["worker"], None, False
        elif entry.kind == Kind.RELEASE:
            self.released = entry.json()["reason"]
            self.held = self.released == Reason.PREEMPTED
        elif entry.terminal:
            self.ended = True

    def mark_resubmitted(self, attempt: int, queue: str, fleet: Fleet) -> None:
        """The attempt was sent, by whomever."""
        self.attempt, self.queue = attempt, queue
        self.worker = self.released = self.missing_since = None
        self.sent = time.monotonic()
        self.fleet = frozenset(worker.instance_id for worker in fleet.living)

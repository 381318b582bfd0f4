"""Books what requests used: from the outbox in Redis, where the script that ended them left it, into SQL.

A bill leaves the outbox when it is booked. One that is read and not booked (the process died, the database was away)
is read again; to book it twice changes nothing.
"""

import logging
import threading
from typing import Any

import redis
from redis.exceptions import RedisError, ResponseError
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from store.redis import keys as redis_keys
from store.sql.usage import UsageStore
from store.usage_bill import Bill

log = logging.getLogger(__name__)

#: What is wrong with one bill, whoever books it.
_BAD_BILL = (DataError, IntegrityError, TypeError, ValueError, OverflowError)

GROUP = "booker"
#: Bills that are booked in one transaction.
_BATCH = 500
#: How long one read waits for bills. Milliseconds; below the client's own bound.
_WAIT_MS = 1000
#: After this long a bill that somebody read, and did not book, is anybody's. Milliseconds.
_ABANDONED_MS = 30_000
#: Pause after a failure. Seconds.
_PAUSE_SECONDS = 1.0


class UsageBooker:
    """Books for one worker, in a thread of its own. Several share the work."""

    def __init__(self, client: redis.Redis, store: UsageStore, name: str, abandoned_ms: int = _ABANDONED_MS) -> None:
        self._redis = client
        self._store = store
        self._name = name
        self._abandoned_ms = abandoned_ms
        self._outbox = redis_keys.bills()
        self._stop = threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="usage-booker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread once it has booked what it read."""
        self._stop.set()
        self._thread.join(timeout=10)

    def book_once(self, wait_ms: int = _WAIT_MS) -> int:
        """Book what there is; return how many bills. Raises ``RedisError``, ``OSError``, ``SQLAlchemyError``."""
        found = self._abandoned() or self._new(wait_ms)
        bills, ids = [], []
        for entry_id, fields in found:
            ids.append(entry_id)
            try:
                bills.append(Bill.from_json(fields[b"b"]))
            except (ValueError, TypeError, KeyError):
                # Nothing would ever come of it.
                log.error("A bill cannot be read and is dropped", extra={"entry": str(entry_id)})
        self._book(bills)
        if ids:
            with self._redis.pipeline() as pipeline:
                pipeline.xack(self._outbox, GROUP, *ids)
                pipeline.xdel(self._outbox, *ids)
                pipeline.execute()
        return len(bills)

    def _book(self, bills: list[Bill]) -> None:
        """Book all of them; one that no database takes is dropped, and holds up no other."""
        try:
            self._store.book(bills)
        except _BAD_BILL:
            for bill in bills:
                try:
                    self._store.book([bill])
                except _BAD_BILL as error:
                    log.error("A bill cannot be booked: %s", error.__class__.__name__, extra={"request_id": bill.id})

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.book_once()
                self._failing = False
            except (RedisError, OSError, SQLAlchemyError) as error:
                if not self._failing:
                    log.warning("Usage cannot be booked now, it waits: %s", error.__class__.__name__)
                self._failing = True
                self._stop.wait(_PAUSE_SECONDS)
            except Exception:
                # The thread must outlive any fault: without it nothing is booked.
                log.exception("Usage could not be booked")
                self._stop.wait(_PAUSE_SECONDS)

    def _new(self, wait_ms: int) -> list[Any]:
        found: Any = self._grouped(
            lambda: self._redis.xreadgroup(GROUP, self._name, {self._outbox: ">"}, count=_BATCH, block=wait_ms)
        )
        return [entry for _, entries in found or [] for entry in entries]

    def _abandoned(self) -> list[Any]:
        found: Any = self._grouped(
            lambda: self._redis.xautoclaim(self._outbox, GROUP, self._name, self._abandoned_ms, count=_BATCH)
        )
        # What was trimmed away meanwhile has no fields.
        return [entry for entry in found[1] if entry[1]]

    def _grouped(self, read: Any) -> Any:
        """Make a call of the group; the group is made where it is missing: at first, or when Redis was emptied."""
        try:
            return read()
        except ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
            self._redis.xgroup_create(self._outbox, GROUP, id="0", mkstream=True)
            return read()

"""Sees to it that no saved job is forgotten, whatever becomes of its message or its runner.

The database is the truth, the queue only wakes: a job whose message was lost (Redis was
flushed, a host rebooted) or whose runner is gone is sent again.
"""

import logging
import threading
from collections.abc import Callable

import redis
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from tasks.broker import queues

log = logging.getLogger(__name__)

#: How often the jobs are looked through. Seconds.
POLL_SECONDS = 2.0


class JobWatcher:
    """A thread that sends forgotten jobs of one queue again, until :attr:`stopping` is set."""

    def __init__(
        self,
        client: redis.Redis,
        queue: str,
        claimable: Callable[[], list[str]],
        enqueue: Callable[[redis.Redis, str], None],
        before_each_look: Callable[[], None] | None = None,
    ) -> None:
        """``before_each_look`` is called first each time, e.g. to save what is due."""
        self.stopping = threading.Event()
        self._redis = client
        self._queue = queue
        self._claimable = claimable
        self._enqueue = enqueue
        self._before_each_look = before_each_look
        self._thread = threading.Thread(target=self._run, name=f"{queue}-watcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self.stopping.wait(POLL_SECONDS):
            try:
                if self._before_each_look is not None:
                    self._before_each_look()
                self._send_forgotten()
            except (RedisError, OSError, SQLAlchemyError) as error:
                log.warning("The jobs cannot be looked through now: %s", error.__class__.__name__)
            except Exception:
                # The thread must outlive any fault: without it a lost job stays lost.
                log.exception("The watcher of the jobs failed")

    def _send_forgotten(self) -> None:
        jobs = self._claimable()
        waiting = queues.waiting_ids(self._redis, [self._queue], jobs) if jobs else set()
        for job_id in jobs:
            if job_id not in waiting:
                log.info("A job without a runner is sent again", extra={"job_id": job_id})
                self._enqueue(self._redis, job_id)

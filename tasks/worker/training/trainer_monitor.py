"""Listens to one trainer, writes down what it reports, and keeps the job's lease meanwhile."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from engines.training.protocol import Event
from store.sql.jobs import EventKind, JobStatus, JobStore
from store.sql.leases import LEASE_SECONDS, Lease, LeaseLostError
from tasks.worker.training.trainer_process import TrainerProcess

log = logging.getLogger(__name__)

#: How often the lease is renewed and the client's request is read. Seconds.
RENEW_SECONDS = 1.0
#: How long a trainer may take to save a checkpoint when it is told to stop. Seconds.
SAVE_SECONDS = 60.0


class TrainerMonitor:
    """One run of the trainer."""

    def __init__(
        self,
        jobs: JobStore,
        lease: Lease,
        process: TrainerProcess,
        stopping: threading.Event,
        on_checkpoint: Callable[[int], None],
    ) -> None:
        self._jobs = jobs
        self._lease = lease
        self._process = process
        self._stopping = stopping
        self._on_checkpoint = on_checkpoint
        #: What the client wants the job to become; ``stopped`` when the worker is leaving.
        self.requested = ""
        #: How the trainer ended, for the log.
        self.status = ""
        self._last: dict[str, Any] | None = None
        self._kill_at: float | None = None
        self._renewed = time.monotonic()

    def run(self) -> dict[str, Any] | None:
        """Return the trainer's last event: completed, failed or paused; None when there was none.

        Raises ``LeaseLostError``.
        """
        try:
            self._listen()
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        status = self._process.wait()
        self.status = f"signal {-status}" if status < 0 else f"exit status {status}"
        return self._last

    def _listen(self) -> None:
        due = 0.0
        while True:
            if time.monotonic() >= due:
                self._renew()
                due = time.monotonic() + RENEW_SECONDS
            if self._kill_at is not None and time.monotonic() > self._kill_at:
                self._process.kill()
            try:
                event = self._process.next(timeout=max(0.01, due - time.monotonic()))
            except queue.Empty:
                continue
            if event is None:
                return
            self._on_event(event)

    def _renew(self) -> None:
        try:
            requested = self._jobs.renew(self._lease)
        except SQLAlchemyError as error:
            # Until the lease ends nobody else may run it; after that somebody may.
            if time.monotonic() - self._renewed > LEASE_SECONDS - 2 * RENEW_SECONDS:
                raise LeaseLostError("the database cannot be reached, and the lease ends") from error
            log.warning("The lease cannot be renewed now: %s", error.__class__.__name__)
            return
        self._renewed = time.monotonic()
        if self._stopping.is_set() and not requested:
            requested = "stopped"
        if requested == self.requested:
            return
        self.requested = requested
        if requested == JobStatus.CANCELLED.value:
            self._process.kill()
        elif requested:
            self._process.stop()
            self._kill_at = time.monotonic() + SAVE_SECONDS

    def _on_event(self, event: dict[str, Any]) -> None:
        kind = event.pop("event")
        step, epoch = int(event.get("step", 0)), event.get("epoch")
        if kind in (Event.COMPLETED, Event.FAILED, Event.PAUSED):
            self._last = {"event": kind, **event}
            if kind == Event.PAUSED:
                self._jobs.progress(self._lease, step=step)
        elif kind == Event.STARTED:
            self._jobs.mark_started(self._lease, step, event["total_steps"], event["samples"])
        elif kind == Event.STEP:
            self._jobs.progress(self._lease, step=step, epoch=epoch)
        elif kind == Event.METRICS:
            shown = {name: event[name] for name in ("loss", "learning_rate") if name in event}
            data = {name: value for name, value in event.items() if name != "step"}
            self._jobs.add_event(self._lease, EventKind.METRICS, step, data, step=step, epoch=epoch, **shown)
        elif kind == Event.CHECKPOINT:
            self._on_checkpoint(step)
        else:
            self._jobs.add_event(self._lease, EventKind.NOTE, step, {"message": str(event.get("message"))})

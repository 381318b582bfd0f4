"""Runs all batches of an installation: one process, which may be killed at any moment.

What it knows is on disk and in SQL before anybody is told. A batch goes *validating* → *in progress* → *finalizing* →
its end; whoever takes it on again begins where the journals end.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from services.container import Services
from services.errors import Unavailable, translated_errors
from store.files.batch_folder import BatchFolder
from store.files.files import FileStore
from store.sql.batches import BatchStatus, BatchStore, is_late
from store.sql.file_tables import Batch, ClientFile
from store.sql.leases import LeaseLostError
from store.sql.tables import now
from webapp.openai.batches import output
from webapp.openai.batches.active import ActiveBatch
from webapp.openai.batches.dispatcher import LineDispatcher
from webapp.openai.batches.lines import Fault, Scan

log = logging.getLogger(__name__)

#: How often batches are looked at. Seconds.
_TICK = 0.25
#: How long it waits for a Redis or a database that is away, before it looks again. Seconds.
_AWAY = 2.0
#: How often new batches are looked for. Seconds.
_LOOK = 0.5
#: How often what came is made safe and shown. Seconds.
_SHOW = 0.5
#: Without a batch for so long the process ends. Seconds.
_IDLE = 3.0
#: Files that are looked through at once.
_VALIDATORS = 2
#: How long a batch waits that something went wrong with, and how often that may be a fault of ours. Seconds.
_PARK = 15.0
_FAULTS = 3


class Point:
    """Moments that tests let the process die at."""

    CLAIMED = "claimed"
    VALIDATED = "validated"
    SHOWN = "shown"
    FINALIZING = "finalizing"
    WRITTEN = "written"
    ENDED = "ended"


class BatchRunner:
    """The runner. ``reached`` is told each ``Point`` that a batch comes to, ``tick`` is called in every round."""

    def __init__(
        self,
        services: Services,
        batches: BatchStore,
        files: FileStore,
        lines_per_worker: int,
        reached: Callable[[str, ActiveBatch], None] = lambda point, batch: None,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self._services = services
        self._batches = batches
        self._files = files
        self._reached = reached
        self._tick = tick
        self._dispatcher = LineDispatcher(services, lines_per_worker)
        self._validators = ThreadPoolExecutor(_VALIDATORS, "batch-file")
        self._active: dict[str, ActiveBatch] = {}
        #: Batches that another runner took: they are that one's.
        self._lost: set[str] = set()
        #: When a batch is taken on again that something went wrong with, and how often that was.
        self._parked: dict[str, float] = {}
        self._faults: Counter[str] = Counter()
        self._looked_at = 0.0

    def run(self) -> None:
        """Run until no batch is open, or all are another's; without Redis or SQL it waits."""
        idle_since = time.monotonic()
        while time.monotonic() - idle_since < _IDLE:
            self._tick()
            try:
                with translated_errors():
                    self._claim_new()
                    for batch in list(self._active.values()):
                        self._step_guarded(batch)
                    self._dispatcher.dispatch(list(self._active.values()))
            except Unavailable as error:
                log.warning("Batches wait: %s", error)
                self._dispatcher.wait(_AWAY)
            if self._active or self._parked:
                idle_since = time.monotonic()
            self._dispatcher.wait(_TICK)

    def _claim_new(self) -> None:
        if time.monotonic() - self._looked_at < _LOOK:
            return
        self._looked_at = time.monotonic()
        rows = self._batches.open()
        self._parked = {row.id: self._parked[row.id] for row in rows if row.id in self._parked}
        for row in rows:
            if row.id in self._active or row.id in self._lost or time.monotonic() < self._parked.get(row.id, 0.0):
                continue
            self._parked.pop(row.id, None)
            fence = self._batches.claim(row)
            if fence is None:
                self._lost.add(row.id)
                continue
            batch = ActiveBatch(row, fence, BatchFolder(self._files.folder.root, row.id))
            self._active[row.id] = batch
            self._reached(Point.CLAIMED, batch)
            self._validators.submit(batch.validate)

    def _step_guarded(self, batch: ActiveBatch) -> None:
        """Bring a batch a step further; what goes wrong with it is no other's concern. Raises ``Unavailable``."""
        try:
            with translated_errors():
                self._step(batch)
        except LeaseLostError as error:
            log.warning("A batch is left to another runner: %s", error)
            self._lost.add(batch.row.id)
            self._drop(batch)
        except Unavailable:
            raise
        except FileNotFoundError:
            self._drop(batch)
            self._give_up(batch)
        except OSError as error:
            # A disk that is full, a folder that is away: later it may be otherwise.
            log.error("A batch's files cannot be written or read, it waits: %s", error.strerror, extra=_fields(batch))
            self._park(batch)
        except Exception:
            log.exception("A batch cannot be run", extra=_fields(batch))
            self._faults[batch.row.id] += 1
            self._park(batch)
            if self._faults[batch.row.id] >= _FAULTS:
                self._give_up(batch)

    def _park(self, batch: ActiveBatch) -> None:
        self._drop(batch)
        self._parked[batch.row.id] = time.monotonic() + _PARK

    def _give_up(self, batch: ActiveBatch) -> None:
        fault = Fault("server_error", "The batch cannot be run: its file is gone, or its state cannot be read")
        try:
            self._batches.finish(batch.row.id, batch.fence, BatchStatus.FAILED, errors=[fault.to_dict()])
        except LeaseLostError:
            self._lost.add(batch.row.id)

    def _drop(self, batch: ActiveBatch) -> None:
        batch.lost = True
        self._active.pop(batch.row.id, None)
        batch.close()

    def _step(self, batch: ActiveBatch) -> None:
        """Bring a batch a step further, where there is one."""
        if batch.broken is not None:
            raise batch.broken
        if batch.found is None:
            return
        if not batch.begun:
            self._begin(batch, batch.found)
        elif time.monotonic() - batch.shown_at >= _SHOW or batch.done:
            self._show(batch)
            if batch.row.ended_at is not None:
                # It ended, and the database's answer was lost.
                self._end(batch)
            elif batch.done:
                self._finish(batch)

    def _begin(self, batch: ActiveBatch, found: Scan) -> None:
        row = self._load(batch)
        if found.faults and row.status != BatchStatus.CANCELLING.value:
            errors = [fault.to_dict() for fault in found.faults]
            log.info("A batch's file has faults", extra={**_fields(batch), "faults": len(errors)})
            self._batches.finish(row.id, batch.fence, BatchStatus.FAILED, errors=errors)
            self._end(batch)
            return
        self._reached(Point.VALIDATED, batch)
        values = {"total": batch.total, "model": found.model[:256], **batch.counts()}
        begun = {"status": BatchStatus.IN_PROGRESS.value, "in_progress_at": now()}
        if not self._batches.write(row.id, batch.fence, BatchStatus.VALIDATING, **values, **begun):
            self._batches.write(row.id, batch.fence, *_BEGUN, **values)
        batch.begun = True
        self._note_end(batch)

    def _load(self, batch: ActiveBatch) -> Batch:
        row = self._batches.load(batch.row.id)
        if row is None or row.fence != batch.fence:
            raise LeaseLostError(f"batch {batch.row.id} has another runner, or does not exist any more")
        batch.row = row
        return row

    def _show(self, batch: ActiveBatch) -> None:
        batch.shown_at = time.monotonic()
        row = self._load(batch)
        self._note_end(batch)
        counts = batch.sync()
        if counts is not None:
            self._batches.write(row.id, batch.fence, *_BEGUN, **counts)
            self._reached(Point.SHOWN, batch)

    @staticmethod
    def _note_end(batch: ActiveBatch) -> None:
        """Let no more lines be asked where the client, or the clock, wants no more."""
        if not batch.stopped and batch.row.status == BatchStatus.CANCELLING.value:
            batch.stopped = "batch_cancelled"
        elif not batch.stopped and is_late(batch.row) and not batch.done:
            batch.stopped = "batch_expired"

    def _finish(self, batch: ActiveBatch) -> None:
        row = batch.row
        finalizing = {"status": BatchStatus.FINALIZING.value, "finalizing_at": row.finalizing_at or now()}
        begun = batch.stopped or row.status == BatchStatus.FINALIZING.value
        if not begun and not self._batches.write(row.id, batch.fence, BatchStatus.IN_PROGRESS, **finalizing):
            # It is being cancelled: the next step sees it.
            return
        self._reached(Point.FINALIZING, batch)
        # What came since it was shown last.
        batch.sync()
        answers, errors = output.write(batch, self._files)
        self._reached(Point.WRITTEN, batch)
        try:
            files = {"output_file_id": answers, "error_file_id": errors}
            self._batches.finish(row.id, batch.fence, _END[batch.stopped], files, **batch.counts())
        except Exception:
            # The database may have taken it although its answer was lost.
            if self._load(batch).ended_at is None:
                self._discard(answers, errors)
                raise
        self._reached(Point.ENDED, batch)
        for request_id in batch.stopped_requests():
            # Nobody goes on with it.
            self._services.inference.end(request_id)
        log.info("A batch ended", extra={**_fields(batch), **{name: batch.counts()[name] for name in _COUNTED}})
        self._end(batch)

    def _discard(self, *files: ClientFile | None) -> None:
        for file in files:
            if file is not None:
                self._files.path(file).unlink(missing_ok=True)

    def _end(self, batch: ActiveBatch) -> None:
        self._drop(batch)
        batch.folder.remove()


def _fields(batch: ActiveBatch) -> dict[str, str]:
    return {"batch": batch.row.id}


_BEGUN = (BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING, BatchStatus.CANCELLING)
_COUNTED = ("completed", "failed")
_END = {
    "": BatchStatus.COMPLETED,
    "batch_cancelled": BatchStatus.CANCELLED,
    "batch_expired": BatchStatus.EXPIRED,
}

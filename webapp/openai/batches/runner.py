"""Runs all batches of an installation: one process, which may be killed at any moment.

What it knows is on disk and in SQL before anybody is told. A batch goes *validating* → *in progress* → *finalizing* →
its end; whoever takes it on again begins where the journals end.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cachetools import TTLCache

from services.container import Services
from services.errors import ServiceError, Unavailable, as_service_error
from store.files.batch_folder import BatchFolder
from store.files.files import FileStore
from store.sql.batches import BatchStatus, BatchStore, is_late
from store.sql.file_tables import Batch, ClientFile
from store.sql.leases import LeaseLostError
from store.sql.tables import now
from webapp.openai.batches import output
from webapp.openai.batches.active import ActiveBatch
from webapp.openai.batches.answering import GaveWay, NotNow, answer, model_of
from webapp.openai.batches.lines import Line, scan
from webapp.openai.batches.slots import Slots

log = logging.getLogger(__name__)

#: How often batches are looked at. Seconds.
_TICK = 0.25
#: How often new batches are looked for. Seconds.
_LOOK = 0.5
#: How often what came is made safe and shown. Seconds.
_SHOW = 0.5
#: Lines that are asked at once, of all models; each has a thread.
_THREADS = 256
#: Without a batch for so long the process ends. Seconds.
_IDLE = 3.0
#: How long the model of a name is remembered. Seconds.
_NAMES = 5.0


class Point:
    """Moments that tests let the process die at."""

    TAKEN_ON = "taken on"
    VALIDATED = "validated"
    SHOWN = "shown"
    FINALIZING = "finalizing"
    WRITTEN = "written"
    ENDED = "ended"


class BatchRunner:
    """The runner. ``reached`` is told each ``Point`` that a batch comes to."""

    def __init__(
        self,
        services: Services,
        batches: BatchStore,
        files: FileStore,
        lines_per_worker: int,
        reached: Callable[[str, ActiveBatch], None] = lambda point, batch: None,
    ) -> None:
        self._services = services
        self._batches = batches
        self._files = files
        self._reached = reached
        self._active: dict[str, ActiveBatch] = {}
        #: Batches that another runner took: they are that one's.
        self._lost: set[str] = set()
        self._slots = Slots(lines_per_worker)
        self._pool = ThreadPoolExecutor(_THREADS, "batch-line")
        self._in_flight = 0
        self._models: TTLCache[tuple[str, str], str | None] = TTLCache(4096, _NAMES)
        self._wake = threading.Event()
        #: Models of lines that came back, and whether they were stopped for somebody who waits.
        self._back: list[tuple[str, bool]] = []
        self._looked_at = 0.0
        self._lock = threading.Lock()

    def run(self) -> None:
        """Run until no batch is open, or all are another's; without Redis or SQL it waits. Raises ``OSError``."""
        idle_since = time.monotonic()
        while True:
            try:
                self._take_on()
                for batch in list(self._active.values()):
                    self._step(batch)
                if self._active:
                    idle_since = time.monotonic()
                    self._ask_lines()
            except Exception as error:
                if not isinstance(as_service_error(error), Unavailable):
                    raise
            if time.monotonic() - idle_since >= _IDLE:
                self._pool.shutdown(wait=False)
                return
            self._wake.wait(_TICK)
            self._wake.clear()

    def _take_on(self) -> None:
        if time.monotonic() - self._looked_at < _LOOK:
            return
        self._looked_at = time.monotonic()
        for row in self._batches.open():
            if row.id in self._active or row.id in self._lost:
                continue
            fence = self._batches.take_on(row)
            if fence is None:
                self._lost.add(row.id)
                continue
            batch = ActiveBatch(row, fence, BatchFolder(self._files.folder.root, row.id))
            self._reached(Point.TAKEN_ON, batch)
            try:
                self._begin(batch)
            except LeaseLostError:
                self._drop(batch)

    def _begin(self, batch: ActiveBatch) -> None:
        """Look through a batch's file, and through what came of it so far."""
        row = batch.row
        found = scan(batch.folder.input, row.endpoint)
        if found.faults:
            errors = [fault.to_dict() for fault in found.faults]
            log.info("A batch's file has faults", extra={"batch": row.id, "faults": len(errors)})
            self._batches.finish(row.id, batch.fence, BatchStatus.FAILED, errors=errors)
            batch.folder.remove()
            return
        batch.begin(found.lines)
        self._reached(Point.VALIDATED, batch)
        values = {"total": batch.total, "model": found.model[:256], **batch.counts()}
        begun = {"status": BatchStatus.IN_PROGRESS.value, "in_progress_at": now()}
        if not self._batches.write(row.id, batch.fence, BatchStatus.VALIDATING, **values, **begun):
            open_states = (BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING, BatchStatus.CANCELLING)
            self._batches.write(row.id, batch.fence, *open_states, **values)
        self._active[row.id] = batch

    def _step(self, batch: ActiveBatch) -> None:
        """Show how far a batch is; end it when it is at its end."""
        try:
            if time.monotonic() - batch.shown_at >= _SHOW or batch.done:
                self._show(batch)
            if batch.done:
                self._finish(batch)
        except LeaseLostError as error:
            log.warning("A batch is left to another runner: %s", error)
            self._drop(batch)

    def _show(self, batch: ActiveBatch) -> None:
        batch.shown_at = time.monotonic()
        row = self._batches.load(batch.row.id)
        if row is None:
            raise LeaseLostError(f"batch {batch.row.id} does not exist any more")
        batch.row = row
        if not batch.stopped and row.status == BatchStatus.CANCELLING.value:
            batch.stopped = "batch_cancelled"
        elif not batch.stopped and is_late(row) and not batch.done:
            batch.stopped = "batch_expired"
        if batch.sync():
            open_states = (BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING, BatchStatus.CANCELLING)
            self._batches.write(row.id, batch.fence, *open_states, **batch.counts())
            self._reached(Point.SHOWN, batch)

    def _finish(self, batch: ActiveBatch) -> None:
        row = batch.row
        finalizing = {"status": BatchStatus.FINALIZING.value, "finalizing_at": row.finalizing_at or now()}
        begun = batch.stopped or row.status == BatchStatus.FINALIZING.value
        if not begun and not self._batches.write(row.id, batch.fence, BatchStatus.IN_PROGRESS, **finalizing):
            # It is being cancelled.
            self._show(batch)
            return
        self._reached(Point.FINALIZING, batch)
        answers, errors = output.write(batch, self._files)
        self._reached(Point.WRITTEN, batch)

        try:
            files = {"output_file_id": answers, "error_file_id": errors}
            self._batches.finish(row.id, batch.fence, _END[batch.stopped], files, **batch.counts())
        except BaseException:
            self._discard(answers, errors)
            raise
        self._reached(Point.ENDED, batch)
        log.info("A batch ended", extra={"batch": row.id, "answered": batch.answered, "refused": batch.refused})
        del self._active[row.id]
        batch.close()
        batch.folder.remove()

    def _discard(self, *files: ClientFile | None) -> None:
        for file in files:
            if file is not None:
                self._files.path(file).unlink(missing_ok=True)

    def _drop(self, batch: ActiveBatch) -> None:
        batch.lost = True
        self._lost.add(batch.row.id)
        self._active.pop(batch.row.id, None)
        batch.close()

    # The lines.

    def _ask_lines(self) -> None:
        """Give the free places to the tenants by turns, and a tenant's to its batches, the oldest first."""
        with self._lock:
            for model, somebody_came in self._back:
                self._slots.give_back(model)
                if somebody_came:
                    self._slots.somebody_came(model)
            self._back.clear()
        tenants: dict[str, list[ActiveBatch]] = {}
        for batch in self._active.values():
            tenants.setdefault(batch.row.tenant, []).append(batch)
        turns = list(tenants.values())
        while turns:
            for batches in list(turns):
                while batches and not self._ask_next(batches[0]):
                    batches.pop(0)
                if not batches:
                    turns.remove(batches)

    def _ask_next(self, batch: ActiveBatch) -> bool:
        """Ask a batch's next line, where there is one and a place for it."""
        found = batch.next() if self._in_flight < _THREADS else None
        if found is None:
            return False
        line, request = found
        model = self._model(batch.row, model_of(request["body"]))
        if model is not None:
            if self._slots.free(self._services.models.fleet(), model) < 1:
                return False
            self._slots.take(model)
        batch.take(line)
        with self._lock:
            self._in_flight += 1
        self._pool.submit(self._ask, batch, line, request, model)
        return True

    def _ask(self, batch: ActiveBatch, line: Line, request: dict[str, Any], model: str | None) -> None:
        """In a thread of its own: one line, from its question to its result."""
        row, stopped = batch.row, False
        try:
            owner = self._services.access.owner(row.owner, row.tenant)
            body, yields = request["body"], batch.yields(line)
            found = answer(self._services, owner, row.endpoint, body, batch.given_up, yields)
            if found is None:
                batch.forget()
            else:
                batch.take_answer(line, request["custom_id"], found)
        except GaveWay:
            stopped = True
            batch.interrupt(line)
        except NotNow as error:
            log.info("A line waits: %s", error, extra={"batch": row.id, "line": line.number})
            batch.put_back(line)
        except Exception:
            # The process goes on: the line is asked again, and the log says why.
            log.exception("A line could not be asked", extra={"batch": row.id, "line": line.number})
            batch.put_back(line)
        finally:
            with self._lock:
                self._in_flight -= 1
                if model is not None:
                    self._back.append((model, stopped))
            self._wake.set()

    def _model(self, row: Batch, name: str) -> str | None:
        """Return the id of the model that a name means to a tenant; None for one that will be refused."""
        key = (row.tenant, name)
        if key not in self._models:
            owner = self._services.access.owner(row.owner, row.tenant)
            try:
                models = self._services.models
                self._models[key] = models.resolve_name(owner, name or models.registry.default.id).spec.id
            except ServiceError:
                self._models[key] = None
        return self._models[key]


_END = {
    "": BatchStatus.COMPLETED,
    "batch_cancelled": BatchStatus.CANCELLED,
    "batch_expired": BatchStatus.EXPIRED,
}

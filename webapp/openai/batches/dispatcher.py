"""Sends the lines of batches: which one next, each in a thread of its own, and what becomes of it."""

import logging
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from cachetools import TTLCache

from services.container import Services
from services.errors import ServiceError
from store.sql.file_tables import Batch
from store.token_log.outcomes import Code, Detail, Failure
from webapp.openai.batches.active import ActiveBatch
from webapp.openai.batches.answering import Answer, NotNow, Preempted, answer
from webapp.openai.batches.lines import Line
from webapp.openai.batches.slots import Slots
from webapp.openai.error_body import error_body

log = logging.getLogger(__name__)

#: Lines that are asked at once, of all models; each has a thread.
_THREADS = 256
#: How long the model of a name is remembered. Seconds.
_NAMES = 5.0


class LineDispatcher:
    """The lines of one process that are being asked."""

    def __init__(self, services: Services, lines_per_worker: int) -> None:
        self._services = services
        self._slots = Slots(lines_per_worker)
        self._pool = ThreadPoolExecutor(_THREADS, "batch-line")
        self._in_flight = 0
        self._models: TTLCache[tuple[str, str], str | None] = TTLCache(4096, _NAMES)
        #: Models of lines that came back, and whether they were stopped for somebody who waits.
        self._back: list[tuple[str, bool]] = []
        self._wake = threading.Event()
        self._lock = threading.Lock()

    def wait(self, seconds: float) -> None:
        """Wait until a line comes back, so long at most."""
        self._wake.wait(seconds)
        self._wake.clear()

    def dispatch(self, batches: list[ActiveBatch]) -> None:
        """Give each free place to the tenant with the fewest lines, and a tenant's to its oldest batch.

        ``batches``: the oldest first. Raises what the stores raise.
        """
        with self._lock:
            back, self._back = self._back, []
        for model, note_interactive in back:
            self._slots.give_back(model)
            if note_interactive:
                self._slots.note_interactive(model)
        tenants: dict[str, list[ActiveBatch]] = {}
        running: Counter[str] = Counter()
        for batch in batches:
            if batch.begun:
                tenants.setdefault(batch.row.tenant, []).append(batch)
                running[batch.row.tenant] += batch.in_flight
        while tenants and self._in_flight < _THREADS:
            tenant = min(tenants, key=running.__getitem__)
            if self._dispatch_next(tenants[tenant][0]):
                running[tenant] += 1
                continue
            tenants[tenant].pop(0)
            if not tenants[tenant]:
                del tenants[tenant]

    def _dispatch_next(self, batch: ActiveBatch) -> bool:
        """Ask a batch's next line, where there is one and a place for it."""
        fleet = self._services.models.fleet()
        # Looked up before a line is taken: a database that is away must not lose it.
        models = {name: self._model(batch.row, name) for name in batch.waiting_for()}

        def has_place(name: str) -> bool:
            model = models.get(name)
            return name in models and (model is None or self._slots.free(fleet, model) > 0)

        line = batch.take(has_place)
        if line is None:
            return False
        model = models[line.model]
        # One that is asked although somebody is there would be stopped at once.
        beside = model is not None and not self._slots.is_quiet(model)
        if model is not None:
            self._slots.take(model)
        with self._lock:
            self._in_flight += 1
        self._pool.submit(self._run, batch, line, model, beside)
        return True

    def _run(self, batch: ActiveBatch, line: Line, model: str | None, beside: bool) -> None:
        stopped = False
        try:
            self._ask(batch, line, preemptible=not beside and batch.preemptible(line))
        except Preempted as preempted:
            stopped = True
            batch.preempt(line, preempted.request_id)
        except NotNow as error:
            log.info("A line waits: %s", error, extra={"batch": batch.row.id, "line": line.number})
            batch.requeue(line)
        except Exception as error:
            # The runner decides: a full disk is no fault of the line's.
            batch.broken = error
        finally:
            batch.returned()
            with self._lock:
                self._in_flight -= 1
                if model is not None:
                    self._back.append((model, stopped))
            self._wake.set()

    def _ask(self, batch: ActiveBatch, line: Line, preemptible: bool) -> None:
        request, limit = batch.read(line), self._services.settings.max_body_bytes
        if line.length > limit:
            found: Answer | None = _too_large(limit)
        else:
            found = answer(
                self._services,
                batch.row,
                request["body"],
                batch.given_up,
                preemptible,
                stopped=batch.stopped_request(line),
            )
        if found is not None:
            batch.take_answer(line, request["custom_id"], found)

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


def _too_large(limit: int) -> Answer:
    detail = Detail("body_too_large", "", f"The request is larger than the {limit} bytes allowed")
    return Answer(413, "", error_body(Failure(Code.INVALID_REQUEST, detail.description, (detail,))))

"""The ``gpu-infer`` tasks: thin, ids as arguments. The work is in ``tasks.serving``."""

import logging
import time
from typing import Any

from celery import Task
from celery.worker.request import Request

import logs
from store.requests import RequestRecord
from tasks import app, names
from tasks.serving import load, outcome_fields, serve

log = logging.getLogger(__name__)


class Taken(Request):
    """A message that is gone from its queue already: there is nothing to acknowledge (``tasks.worker``)."""

    def acknowledge(self) -> None:
        self.acknowledged = True


class EngineTask(Task):
    """A task that a worker runs on its engines."""

    Request = Taken


@app.task(name=names.TASK_GENERATE, base=EngineTask, bind=True, ignore_result=True)
def generate(self: Task, request_id: str, model: str, attempt: int = 1) -> None:
    """Serve one request on this worker's engine. ``model`` is there for whoever reads Flower."""
    host: Any = self.app.host
    record = host.run(load(host, request_id))
    if record is None:
        log.warning("The request's record is gone, nothing to serve", extra={"request_id": request_id})
        return
    with logs.bind(**log_fields(record)):
        started = time.monotonic()
        report = host.run(serve(host, record, attempt))
        log.info("Request done", extra=outcome_fields(report, time.monotonic() - started))


def log_fields(record: RequestRecord) -> dict[str, str]:
    """The fields on every log line of a request."""
    return {"request_id": record.id, "model": record.model, **record.metadata}

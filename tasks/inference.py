"""The ``gpu-infer`` tasks: thin, ids as arguments. The work is in ``tasks.serving``."""

import logging
import time
from typing import Any

from celery import Task

import logs
from store.requests import RequestRecord
from tasks import app, names
from tasks.serving import outcome_fields, serve, take
from tasks.strategy import Taken, on_the_loop

log = logging.getLogger(__name__)


class InferenceTask(Task):
    """A task whose body is a coroutine; it runs on the loop of this worker's engines."""

    Request = Taken
    Strategy = staticmethod(on_the_loop)


@app.task(name=names.TASK_GENERATE, base=InferenceTask, ignore_result=True)
async def generate(request_id: str, model: str, attempt: int = 1) -> None:
    """Serve one request on this worker's engine. ``model`` is there for whoever reads Flower."""
    host: Any = app.host
    taken = await take(host, request_id, attempt)
    if taken is None:
        return
    record, writer = taken
    with logs.bind(**log_fields(record)):
        started = time.monotonic()
        report = await serve(host, record, writer)
        log.info("Request done", extra=outcome_fields(report, time.monotonic() - started))


def log_fields(record: RequestRecord) -> dict[str, str]:
    """The fields on every log line of a request."""
    return {"request_id": record.id, "model": record.model, **record.metadata}

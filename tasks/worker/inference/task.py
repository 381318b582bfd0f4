"""The ``gpu-infer`` task: thin, ids as arguments. The work is in ``tasks.worker.inference.serving``."""

import logging
import time
from typing import Any

from celery import Task, shared_task

import logs
from tasks.broker import names
from tasks.worker.celery_internals import PreAckedRequest, run_on_engine_loop
from tasks.worker.inference.serving import claim_request, outcome_fields, serve
from tasks.worker.metrics import SERVED

log = logging.getLogger(__name__)


class InferenceTask(Task):
    """A task whose body is a coroutine; it runs on the loop of this worker's engines."""

    Request = PreAckedRequest
    Strategy = staticmethod(run_on_engine_loop)


@shared_task(name=names.TASK_GENERATE, base=InferenceTask, bind=True, ignore_result=True)
async def generate(self: Task, request_id: str, model: str, attempt: int = 1) -> None:
    """Serve one request on this worker's engine. ``model`` is there for whoever reads Flower."""
    host: Any = self.app.host
    claimed = await claim_request(host, request_id, attempt)
    if claimed is None:
        return
    record, writer = claimed
    with logs.bind(**record.log_fields):
        started = time.monotonic()
        served = await serve(host, record, writer)
        SERVED.labels(record.model, served.outcome).inc()
        log.info("Request done", extra=outcome_fields(served, time.monotonic() - started))

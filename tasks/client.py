"""The front door's side of the queue: which queue a request goes to, and how a request gets there."""

import logging
import time

import redis
from kombu.exceptions import OperationalError

from store.presence import Fleet
from store.requests import RequestRecord
from tasks import app
from tasks.names import HIGHEST_PRIORITY, QUEUE_INFER, TASK_GENERATE, model_queue, worker_queue
from tasks.queues import send_training

log = logging.getLogger(__name__)


def queue_for(fleet: Fleet, model: str, hint: str = "") -> str | None:
    """Return the queue that takes a request for ``model``; None when no living worker serves it.

    The queue of the worker called ``hint``, where that one serves the model; else the
    model's own queue, where a worker listens to it; else the common one.
    """
    workers = fleet.serving(model)
    if hint and any(worker.name == hint for worker in workers):
        return worker_queue(hint)
    queues = {queue for worker in workers for queue in worker.queues}
    own = model_queue(model)
    if own in queues:
        return own
    return QUEUE_INFER if QUEUE_INFER in queues else None


def enqueue(record: RequestRecord, queue: str, attempt: int = 1) -> None:
    """Send the task of a saved request. Raises ``redis.ConnectionError`` when the broker is away."""
    try:
        app.send_task(
            TASK_GENERATE,
            args=[record.id, record.model],
            kwargs={"attempt": attempt},
            task_id=record.id if attempt == 1 else f"{record.id}.{attempt}",
            queue=queue,
            # The broker serves the lowest number first.
            priority=HIGHEST_PRIORITY - record.priority,
            expires=max(1.0, record.deadline - time.time()),
        )
    except OperationalError as error:
        raise redis.ConnectionError(str(error)) from error


def enqueue_training(job_id: str) -> None:
    """Send a saved job to the training queue. Raises ``redis.ConnectionError`` when the broker is away."""
    send_training(app, job_id)


def all_queues(fleet: Fleet) -> set[str]:
    """Every inference queue that a living worker listens to, and the common one."""
    return {queue for worker in fleet.living for queue in worker.queues} | {QUEUE_INFER}

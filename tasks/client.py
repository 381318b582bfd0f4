"""The front door's side of the queue: which queue a request goes to, and how many wait there."""

import logging
import time

import redis
from kombu.exceptions import OperationalError

from store.presence import Fleet
from store.requests import RequestRecord
from tasks import app
from tasks.names import QUEUE_INFER, TASK_GENERATE, model_queue

log = logging.getLogger(__name__)


def queue_for(fleet: Fleet, model: str) -> str | None:
    """Return the queue of a live worker that serves ``model``; its own queue first. None: no worker."""
    queues = {queue for worker in fleet.serving(model) for queue in worker.queues}
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
            expires=max(1.0, record.deadline - time.time()),
        )
    except OperationalError as error:
        raise redis.ConnectionError(str(error)) from error


def pending(client: redis.Redis, fleet: Fleet) -> int:
    """Return how many requests wait in the queues of the living workers."""
    queues = sorted({queue for worker in fleet.living for queue in worker.queues} | {QUEUE_INFER})
    with client.pipeline(transaction=False) as pipeline:
        for queue in queues:
            pipeline.llen(queue)
        return sum(pipeline.execute())

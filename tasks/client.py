"""The front door's side of the queue: which queue a request goes to, and how many wait there."""

import logging
import time
from collections.abc import Iterable

import redis
from kombu.exceptions import OperationalError

from store.presence import Fleet
from store.requests import RequestRecord
from tasks import app
from tasks.names import HIGHEST_PRIORITY, PRIORITY_STEPS, QUEUE_INFER, TASK_GENERATE, model_queue, worker_queue

log = logging.getLogger(__name__)

#: Between a queue's name and a priority in the name of a Redis list (``kombu.transport.redis``).
_SEPARATOR = "\x06\x16"


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


def pending(client: redis.Redis, queues: Iterable[str]) -> int:
    """Return how many requests wait in the queues."""
    with client.pipeline(transaction=False) as pipeline:
        for key in _lists(queues):
            pipeline.llen(key)
        return sum(pipeline.execute())


def waiting_ids(client: redis.Redis, queues: Iterable[str], wanted: Iterable[str]) -> set[str]:
    """Return which of the wanted requests still wait in the queues."""
    with client.pipeline(transaction=False) as pipeline:
        for key in _lists(queues):
            pipeline.lrange(key, 0, -1)
        messages = b"\n".join(message for found in pipeline.execute() for message in found)
    return {request_id for request_id in wanted if request_id.encode() in messages}


def all_queues(fleet: Fleet) -> set[str]:
    """Every inference queue that a living worker listens to, and the common one."""
    return {queue for worker in fleet.living for queue in worker.queues} | {QUEUE_INFER}


def _lists(queues: Iterable[str]) -> list[str]:
    """The Redis lists of the queues: one for each priority (kombu's naming)."""
    return [queue if not step else f"{queue}{_SEPARATOR}{step}" for queue in sorted(queues) for step in PRIORITY_STEPS]

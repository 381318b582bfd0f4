"""What waits in the queues, and the one way into the training queue. Needs no application of its own."""

from collections.abc import Iterable

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from tasks.names import HIGHEST_PRIORITY, PRIORITY_STEPS, QUEUE_TRAIN, TASK_TRAIN

#: Between a queue's name and a priority in the name of a Redis list (``kombu.transport.redis``).
_SEPARATOR = "\x06\x16"


def send_training(app: Celery, job_id: str) -> None:
    """Send a saved job to the training queue. Raises ``redis.ConnectionError`` when the broker is away."""
    try:
        app.send_task(TASK_TRAIN, args=[job_id], queue=QUEUE_TRAIN, priority=HIGHEST_PRIORITY)
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


def list_of(queue: str, step: int) -> str:
    """The Redis list of a queue's messages of one priority, as the broker counts them (kombu's naming)."""
    return f"{queue}{_SEPARATOR}{step}" if step else queue


def _lists(queues: Iterable[str]) -> list[str]:
    return [list_of(queue, step) for queue in sorted(queues) for step in PRIORITY_STEPS]

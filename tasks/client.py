"""The front door's side of the queue: which queue a request goes to, and how a request gets there."""

import time

import redis

from store.presence import Fleet
from store.requests import RequestRecord, RequestStore
from tasks import app
from tasks.messages import generate_message
from tasks.names import QUEUE_INFER, model_queue, worker_queue
from tasks.queues import send_training


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


def submit(redis_client: redis.Redis, requests: RequestStore, record: RequestRecord, queue: str, attempt: int) -> None:
    """Save a request and send the task of its attempt, in one round trip. Raises ``redis.RedisError``."""
    expires = max(record.deadline, time.time() + 1.0)
    key, message = generate_message(record.id, record.model, attempt, queue, record.priority, expires)
    with redis_client.pipeline(transaction=False) as pipeline:
        requests.save(record, pipeline)
        pipeline.lpush(key, message)
        pipeline.execute()


def enqueue_training(job_id: str) -> None:
    """Send a saved job to the training queue. Raises ``redis.ConnectionError`` when the broker is away."""
    send_training(app, job_id)


def all_queues(fleet: Fleet) -> set[str]:
    """Every inference queue that a living worker listens to, and the common one."""
    return {queue for worker in fleet.living for queue in worker.queues} | {QUEUE_INFER}

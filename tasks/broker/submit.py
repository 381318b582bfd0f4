"""Which queue a request goes to, and how requests and jobs get into their queues."""

import random
import time
import uuid

import redis

from store.redis.presence import Fleet
from store.redis.request_records import RequestRecord, RequestStore
from tasks.broker.messages import task_message
from tasks.broker.names import (
    QUEUE_BACKGROUND,
    QUEUE_INFER,
    QUEUE_TRAIN,
    TASK_BACKGROUND,
    TASK_GENERATE,
    TASK_TRAIN,
    model_queue,
    worker_queue,
)


def queue_for(fleet: Fleet, model: str, hint: str = "") -> str | None:
    """Return the queue that takes a request for ``model``; None when no living worker serves it.

    The queue of the worker called ``hint``, where that one serves the model; else the model's own queue or the common
    one. Where some of its workers listen to the one and some to the other, each queue gets its workers' share: a
    worker that listens to both would ask Redis for more lists with every message.
    """
    workers = fleet.serving(model)
    if hint and any(worker.name == hint for worker in workers):
        return worker_queue(hint)
    own = model_queue(model)
    # A worker with the model's own queue listens to the common one for another model.
    queues = [own if own in worker.queues else QUEUE_INFER for worker in workers]
    queues = [queue for queue, worker in zip(queues, workers, strict=True) if queue in worker.queues]
    if queues:
        return random.choice(queues)
    return own if fleet.on_demand(model) else None


def all_queues(fleet: Fleet) -> set[str]:
    """Every inference queue that a living worker listens to, and the common one."""
    return {queue for worker in fleet.living for queue in worker.queues} | {QUEUE_INFER}


def submit(client: redis.Redis, requests: RequestStore, record: RequestRecord, queue: str, attempt: int) -> None:
    """Save a request and send the task of its attempt, in one round trip. Raises ``redis.RedisError``."""
    task_id = record.id if attempt == 1 else f"{record.id}.{attempt}"
    key, message = task_message(
        TASK_GENERATE,
        task_id,
        [record.id, record.model],
        {"attempt": attempt},
        queue,
        record.priority,
        expires=max(record.deadline, time.time() + 1.0),
    )
    with client.pipeline(transaction=False) as pipeline:
        requests.save(record, pipeline)
        pipeline.lpush(key, message)
        pipeline.execute()


def enqueue_training(client: redis.Redis, job_id: str) -> None:
    """Send a saved job to the training queue. Raises ``redis.RedisError``."""
    _enqueue(client, TASK_TRAIN, job_id, QUEUE_TRAIN)


def enqueue_background(client: redis.Redis, job_id: str) -> None:
    """Send a saved background job to its queue. Raises ``redis.RedisError``."""
    _enqueue(client, TASK_BACKGROUND, job_id, QUEUE_BACKGROUND)


def _enqueue(client: redis.Redis, task: str, job_id: str, queue: str) -> None:
    key, message = task_message(task, str(uuid.uuid4()), [job_id], {}, queue)
    client.lpush(key, message)

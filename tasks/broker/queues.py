"""What waits in the queues."""

from collections.abc import Iterable

import redis

from tasks.broker.messages import list_of
from tasks.broker.names import PRIORITY_STEPS


def pending(client: redis.Redis, queues: Iterable[str]) -> int:
    """Return how many messages wait in the queues. Raises ``redis.RedisError``."""
    with client.pipeline(transaction=False) as pipeline:
        for key in _lists(queues):
            pipeline.llen(key)
        return sum(pipeline.execute())


def waiting_ids(client: redis.Redis, queues: Iterable[str], wanted: Iterable[str]) -> set[str]:
    """Return which of the wanted ids (of requests, of jobs) still wait in the queues."""
    with client.pipeline(transaction=False) as pipeline:
        for key in _lists(queues):
            pipeline.lrange(key, 0, -1)
        messages = b"\n".join(message for found in pipeline.execute() for message in found)
    return {request_id for request_id in wanted if request_id.encode() in messages}


def _lists(queues: Iterable[str]) -> list[str]:
    return [list_of(queue, step) for queue in sorted(queues) for step in PRIORITY_STEPS]

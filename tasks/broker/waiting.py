"""Who waits for a model that is not loaded: requests in its queue that have not ended and that somebody follows."""

import base64
import json
from typing import Any

import redis.asyncio

from store.redis import keys
from store.token_log.log import entries_from_rows
from tasks.broker.messages import list_of
from tasks.broker.names import PRIORITY_STEPS, model_queue

#: Messages of each priority that are looked at, oldest first: one that is really waited for is enough.
_LOOK_AT = 50


async def anybody_waits(client: redis.asyncio.Redis, model: str) -> bool:
    """Whether a request that waits in the model's queue is still wanted. Raises ``redis.RedisError``.

    A message outlives its request: of a client that left, of a wait that was over. Those that have ended are taken out.
    """
    lists = [list_of(model_queue(model), step) for step in PRIORITY_STEPS]
    async with client.pipeline(transaction=False) as pipeline:
        for name in lists:
            # They enter at the head, and are taken from the tail.
            pipeline.lrange(name, -_LOOK_AT, -1)
        found = await pipeline.execute()
    for name, messages in zip(lists, found, strict=True):
        for message in reversed(messages):
            if await _is_wanted(client, name, message):
                return True
    return False


async def _is_wanted(client: redis.asyncio.Redis, name: str, message: bytes) -> bool:
    request_id = _request_id(message)
    async with client.pipeline(transaction=False) as pipeline:
        pipeline.xrevrange(keys.log(request_id), count=1)
        pipeline.pubsub_numsub(keys.log_channel(request_id))
        last, followers = await pipeline.execute()
    if any(entry.terminal for entry in entries_from_rows(last)):
        # redis-py's stubs know text alone; bytes are sent as they are.
        await client.lrem(name, -1, message)  # type: ignore[arg-type]
        return False
    return any(int(count) for _, count in followers)


def _request_id(message: bytes) -> str:
    arguments: list[Any] = json.loads(base64.b64decode(json.loads(message)["body"]))[0]
    return str(arguments[0])

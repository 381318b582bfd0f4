"""Who waits for a model that is not loaded: requests in its queue that have not ended and that somebody follows."""

import base64
import json
from datetime import UTC, datetime
from typing import Any

import redis.asyncio

from store.redis import keys
from store.token_log.entries import Entry, Kind
from store.token_log.log import entries_from_rows
from tasks.broker.messages import list_of
from tasks.broker.names import PRIORITY_STEPS, model_queue

#: Messages that are looked at in one round trip.
_PAGE = 50


async def anybody_waits(client: redis.asyncio.Redis, model: str) -> bool:
    """Whether a request that waits in the model's queue is still wanted. Raises ``redis.RedisError``.

    A message outlives its request: of a client that left, of a wait that was over. Those are taken out here; one that
    merely nobody follows stays, since its client may come back.
    """
    for step in PRIORITY_STEPS:
        if await _anybody_in(client, list_of(model_queue(model), step)):
            return True
    return False


async def _anybody_in(client: redis.asyncio.Redis, name: str) -> bool:
    passed_over = 0
    while True:
        # They enter at the head, and are taken from the tail.
        found: Any = await client.lrange(name, -passed_over - _PAGE, -passed_over - 1)
        if not found:
            return False
        async with client.pipeline(transaction=False) as pipeline:
            for message in found:
                request_id, _ = _request(message)
                pipeline.xrevrange(keys.log(request_id), count=1)
                pipeline.pubsub_numsub(keys.log_channel(request_id))
            answers = await pipeline.execute()
        over = []
        for message, last, followers in zip(found, answers[::2], answers[1::2], strict=True):
            if _expired(message) or any(_is_over(entry, message) for entry in entries_from_rows(last)):
                over.append(message)
            elif any(int(count) for _, count in followers):
                return True
        for message in over:
            await client.lrem(name, -1, message)
        passed_over += len(found) - len(over)


def _request(message: bytes) -> tuple[str, int]:
    """Return the id and the attempt that a message is for."""
    arguments, named, _ = json.loads(base64.b64decode(json.loads(message)["body"]))
    return str(arguments[0]), int(named["attempt"])


def _is_over(last: Entry, message: bytes) -> bool:
    """Whether a request has ended, or its attempt was let go of: that is sent anew when its client comes back."""
    return last.terminal or (last.kind == Kind.RELEASE and last.id.attempt >= _request(message)[1])


def _expired(message: bytes) -> bool:
    """Whether a worker would drop the message."""
    expires = json.loads(message)["headers"].get("expires")
    return expires is not None and datetime.fromisoformat(expires) < datetime.now(UTC)

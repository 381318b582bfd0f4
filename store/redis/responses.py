"""The responses of OpenAI's Responses API that clients may ask for again, or go on from. They expire.

One hash each: the front door writes whose it is and what was put in, the worker what came of it, before the end of the
request's log: whoever has seen the end finds it.
"""

import json
import time
from dataclasses import dataclass
from typing import Any

import redis

from store.redis import keys
from store.redis.command_batcher import CommandBatcher

#: How many that have been begun may be there beside those that are kept.
_BEGUN = 100
_OWNER, _RESULT = "owner", "response"


@dataclass(frozen=True)
class StoredResponse:
    """One response: ``items`` is the conversation that was put in, of which the last ``own`` are its own request's."""

    id: str
    tenant: str
    #: The request that makes it.
    request_id: str
    items: list[dict[str, Any]]
    own: int
    #: As far as it is known before its end.
    outline: dict[str, Any]
    #: As it ended; None until then.
    result: dict[str, Any] | None = None


class ResponseStore:
    """What is kept, for each tenant at most ``most`` and for at most ``ttl`` seconds. Raises ``redis.RedisError``."""

    def __init__(self, client: redis.Redis, ttl: int, most: int) -> None:
        self._redis = client
        self._ttl = ttl
        self._most = most

    def begin(self, response: StoredResponse) -> None:
        """Keep a response that is being made. Older ones make room for it once it is there: it may be refused."""
        written = {
            "tenant": response.tenant,
            "request_id": response.request_id,
            "items": response.items,
            "own": response.own,
            "outline": response.outline,
        }
        key, of_tenant = keys.response(response.id), keys.responses_of(response.tenant)
        with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.hset(key, _OWNER, json.dumps(written, ensure_ascii=False))
            pipeline.expire(key, self._ttl)
            pipeline.zadd(of_tenant, {response.id: time.time()})
            pipeline.expire(of_tenant, self._ttl)
            pipeline.zremrangebyscore(of_tenant, 0, time.time() - self._ttl)
            pipeline.zrange(of_tenant, 0, -self._most - _BEGUN - 1)
            surplus: list[Any] = pipeline.execute()[-1]
        if surplus:
            self._redis.delete(*(keys.response(each.decode()) for each in surplus))
            self._redis.zrem(of_tenant, *surplus)

    def load(self, response_id: str) -> StoredResponse | None:
        """Return a response; None for one that is not kept."""
        found: Any = self._redis.hmget(keys.response(response_id), _OWNER, _RESULT)
        if found[0] is None:
            return None
        written = json.loads(found[0])
        known = {name: written[name] for name in ("tenant", "request_id", "items", "own", "outline")}
        return StoredResponse(id=response_id, result=json.loads(found[1]) if found[1] else None, **known)

    def delete(self, response: StoredResponse) -> None:
        """Forget a response."""
        self._redis.delete(keys.response(response.id))
        self._redis.zrem(keys.responses_of(response.tenant), response.id)


@dataclass(frozen=True)
class Place:
    """Where what comes of a response is kept: whose it is, for how long (seconds), and beside how many."""

    id: str
    tenant: str
    ttl: int
    most: int


async def keep_result(commands: CommandBatcher, place: Place, result: bytes) -> None:
    """Add what came of a response, on a worker's loop; the tenant's oldest ones make room."""
    key, of_tenant = keys.response(place.id), keys.responses_of(place.tenant)
    await commands.execute("HSET", key, _RESULT, result)
    # One that was deleted meanwhile has no owner, is never found, and must not stay.
    await commands.execute("EXPIRE", key, place.ttl)
    surplus = await commands.execute("ZRANGE", of_tenant, 0, -place.most - 1)
    if surplus:
        await commands.execute("DEL", *(keys.response(each.decode()) for each in surplus))
        await commands.execute("ZREM", of_tenant, *surplus)

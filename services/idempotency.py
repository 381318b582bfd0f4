"""Idempotency keys: a repeated call gets what the first one began."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis

from services.context import RequestContext
from services.errors import IdempotencyConflict, InvalidRequest
from store.redis import keys as redis_keys

_FIELD = "Idempotency-Key"
_MAX_LENGTH = 255

#: KEYS what the idempotency key began; ARGV the id that it must mean to be forgotten.
_FORGET = """
local found = redis.call('GET', KEYS[1])
if found and cjson.decode(found).id == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""


class Idempotency:
    """What a key of a caller began: a request, a job. Methods raise ``redis.RedisError``."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._forget = client.register_script(_FORGET)

    def name_of(self, context: RequestContext) -> str | None:
        """Return the Redis key that stands for the caller's; None without one. Raises ``InvalidRequest``."""
        key = context.idempotency_key
        if not key:
            return None
        if len(key) > _MAX_LENGTH:
            description = f"{_FIELD} is longer than {_MAX_LENGTH} characters"
            raise InvalidRequest.of("invalid_value", _FIELD, description)
        scoped = f"{context.principal.id}\0{context.operation}\0{key}"
        return redis_keys.idempotency(hashlib.sha256(scoped.encode("utf-8", "surrogatepass")).hexdigest())

    def find(self, name: str | None, body: dict[str, Any]) -> str | None:
        """Return the id of what the key began, or None. Raises ``IdempotencyConflict`` when its body was another."""
        found: Any = self._redis.get(name) if name else None
        if not found:
            return None
        begun = json.loads(found)
        if begun["body"] != _digest(body):
            raise IdempotencyConflict
        return str(begun["id"])

    def remember(self, name: str | None, new_id: str, body: dict[str, Any], seconds: int) -> str | None:
        """Write down what the key begins, for some seconds. Returns the id of a call that was faster, else None."""
        if name is None:
            return None
        begun = json.dumps({"id": new_id, "body": _digest(body)})
        return None if self._redis.set(name, begun, nx=True, ex=seconds) else self.find(name, body)

    def forget(self, name: str, old_id: str) -> None:
        """Leave a key free that still means ``old_id``; one that means something newer by now is left alone."""
        self._forget(keys=[name], args=[old_id])

    @contextmanager
    def forget_on_error(self, name: str | None) -> Iterator[None]:
        """What could not even be begun leaves its key free for the next try."""
        try:
            yield
        except Exception:
            if name is not None:
                self._redis.delete(name)
            raise


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

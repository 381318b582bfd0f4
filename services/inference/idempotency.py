"""Idempotency keys: a repeated request attaches to the one that the first began."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis

from services.context import RequestContext
from services.errors import IdempotencyConflict, InvalidRequest
from store.redis import keys as redis_keys
from store.redis.request_records import RequestRecord, RequestStore

_FIELD = "Idempotency-Key"
_MAX_LENGTH = 255


class Idempotency:
    """Which request a key of a caller began."""

    def __init__(self, client: redis.Redis, requests: RequestStore, ttl: int) -> None:
        self._redis = client
        self._requests = requests
        self._ttl = ttl

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

    def find(self, name: str | None, body: dict[str, Any]) -> RequestRecord | None:
        """Return the request that the key began, or None. Raises ``IdempotencyConflict`` when its body was another."""
        found: Any = self._redis.get(name) if name else None
        if not found:
            return None
        begun = json.loads(found)
        if begun["body"] != _digest(body):
            raise IdempotencyConflict
        return self._requests.load(begun["id"])

    def remember(self, name: str | None, record: RequestRecord, body: dict[str, Any]) -> RequestRecord | None:
        """Write down which request the key begins. Returns the one of a call that was faster, else None."""
        if name is None:
            return None
        begun = json.dumps({"id": record.id, "body": _digest(body)})
        # The record first: whoever finds the key must find the record.
        self._requests.save(record)
        lifetime = max(1, int(record.deadline - record.created)) + self._ttl
        if self._redis.set(name, begun, nx=True, ex=lifetime):
            return None
        return self.find(name, body)

    @contextmanager
    def forget_on_error(self, name: str | None) -> Iterator[None]:
        """A request that could not even be sent leaves its key free for the next try."""
        try:
            yield
        except Exception:
            if name is not None:
                self._redis.delete(name)
            raise


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

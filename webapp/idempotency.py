"""``Idempotency-Key``: a repeated POST attaches to the request that the first one began."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask import request

from store import names
from store.outcomes import Detail
from store.requests import RequestRecord
from webapp import errors
from webapp.services import Services

_HEADER = "Idempotency-Key"
_MAX_LENGTH = 255


def find(own: Services, owner: str, body: dict[str, Any], key: str | None = None) -> RequestRecord | None:
    """Return the request that this key of this owner began, or None.

    Raises ``ApiError`` (409) when it began another one, (400) for an unusable key.
    """
    name = _name(owner, key)
    return _known(own, name, body) if name else None


def remember(
    own: Services, record: RequestRecord, body: dict[str, Any], key: str | None = None
) -> RequestRecord | None:
    """Note which request the key begins. Returns the one of a call that was faster, else None."""
    name = _name(record.owner, key)
    if name is None:
        return None
    note = json.dumps({"id": record.id, "body": _digest(body)})
    # The record first: whoever finds the note must find the record.
    own.requests.save(record)
    lifetime = max(1, int(record.deadline - record.created)) + own.settings.stream_ttl
    if own.redis.set(name, note, nx=True, ex=lifetime):
        return None
    return _known(own, name, body)


def name_of(owner: str, key: str | None = None) -> str | None:
    """Return the name that the request's key has in the store; None without a key."""
    return _name(owner, key)


@contextmanager
def forget_on_error(own: Services, name: str | None) -> Iterator[None]:
    """A request that could not even be sent leaves its key free for the next try."""
    try:
        yield
    except Exception:
        if name is not None:
            own.redis.delete(name)
        raise


def _known(own: Services, name: str, body: dict[str, Any]) -> RequestRecord | None:
    found: Any = own.redis.get(name)
    if not found:
        return None
    note = json.loads(found)
    if note["body"] != _digest(body):
        raise errors.idempotency_conflict()
    return own.requests.load(note["id"])


def _name(owner: str, key: str | None) -> str | None:
    key = request.headers.get(_HEADER) if key is None else key
    if not key:
        return None
    if len(key) > _MAX_LENGTH:
        description = f"{_HEADER} is longer than {_MAX_LENGTH} characters"
        raise errors.invalid([Detail("invalid_value", _HEADER, description)])
    return names.idempotency(hashlib.sha256(f"{owner}\0{request.path}\0{key}".encode()).hexdigest())


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

"""What one request used, as the process that ends it tells it: a line of the outbox that is booked in SQL."""

import json
import time
from dataclasses import dataclass, fields
from typing import Any

from store.redis.request_records import RequestRecord

#: The endpoint of requests of the native interface, whatever they came through.
NATIVE = "/api/v1/inference"
#: The outcome of a request that goes on when its client comes back, or another worker takes it.
RELEASED = "released"
#: The outcome of one that the engine refused.
REFUSED = "refused"


@dataclass(frozen=True)
class Bill:
    """One request's use so far; booked by its id, so that what is told twice counts once."""

    id: str
    tenant: str
    #: Id of the key.
    key: str
    model: str
    #: An adapter's reference or folder; '' for the model alone.
    adapter: str
    endpoint: str
    #: Unix times, seconds.
    created: float
    ended: float
    #: ``finished``, ``cancelled``, ``error``, ``refused`` or ``released``.
    outcome: str
    attempt: int
    #: Whether nothing can follow.
    final: bool
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    #: From the worker's taking it to its first output. Milliseconds.
    ttft_ms: int | None = None
    #: Whether it was a line of a batch.
    batch: bool = False

    @classmethod
    def of(
        cls,
        record: RequestRecord,
        outcome: str,
        usage: dict[str, int] | None,
        *,
        attempt: int = 0,
        final: bool = True,
        cached_tokens: int = 0,
        ttft_ms: int | None = None,
    ) -> "Bill":
        """Return what a request used; ``usage`` as its end tells it."""
        payload, counts = record.payload, usage or {}
        return cls(
            id=record.id,
            tenant=record.tenant,
            key=record.owner,
            model=record.model,
            adapter=str(payload.get("adapter_name") or payload.get("adapter") or ""),
            endpoint=str(payload.get("path") or NATIVE),
            created=record.created,
            ended=time.time(),
            outcome=outcome,
            attempt=attempt,
            final=final,
            prompt_tokens=counts.get("prompt_tokens", 0),
            cached_tokens=cached_tokens,
            completion_tokens=counts.get("completion_tokens", 0),
            ttft_ms=ttft_ms,
            batch=record.background,
        )

    def to_json(self) -> str:
        # Not ``asdict``, which copies deeply: it is called for every request.
        return json.dumps({name: getattr(self, name) for name in _FIELDS}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Bill":
        """What a newer version adds is passed over. Raises ``ValueError``, ``TypeError``."""
        values: dict[str, Any] = json.loads(text)
        return cls(**{name: value for name, value in values.items() if name in _FIELDS})


_FIELDS = frozenset(field.name for field in fields(Bill))

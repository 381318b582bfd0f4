"""The request record: what a worker needs to serve a request, kept outside the queue.

The queue carries ids only, so that no prompt shows in Flower, and a request can be
served again by another worker.
"""

import base64
import json
import secrets
import time
from dataclasses import dataclass, field, fields
from typing import Any

import redis

from store.redis import keys as redis_keys
from store.redis.command_batcher import CommandBatcher
from store.tenant import DEFAULT_TENANT


def new_request_id() -> str:
    """Return ``gen-`` and 24 random hex digits."""
    return f"gen-{secrets.token_hex(12)}"


@dataclass(frozen=True)
class RequestRecord:
    """One accepted request. ``kind`` says how its payload is read."""

    GENERATE = "generate"
    OPENAI = "openai"

    id: str
    kind: str
    model: str
    #: The key that began it.
    owner: str
    #: Unix time in seconds after which the request has failed.
    deadline: float
    #: ``generate``: prompt, adapter and sampling; ``openai``: path, body (base64) and the name
    #: that the answer shall have for the model, and the id that it is kept under. Both: the tenant.
    payload: dict[str, Any] = field(repr=False)
    #: 0 to 9; higher is served first.
    priority: int = 0
    #: The worker that the client would like; another may take it.
    worker_hint: str = ""
    #: traceId, tenant, playerId, locale, as the client gave them.
    metadata: dict[str, str] = field(default_factory=dict)
    created: float = field(default_factory=time.time)

    @classmethod
    def openai(
        cls,
        *,
        path: str,
        body: bytes,
        tenant: str,
        adapter: str | None = None,
        asked_name: str | None = None,
        adapter_name: str = "",
        kept_as: str | None = None,
        streamed: bool = False,
        background: bool = False,
        preemptible: bool = False,
        light: bool = False,
        detached: bool = False,
        **common: Any,
    ) -> "RequestRecord":
        payload = {
            "path": path,
            "body": base64.b64encode(body).decode(),
            "adapter": adapter,
            "adapter_name": adapter_name,
            "tenant": tenant,
            "asked_name": asked_name,
            "kept_as": kept_as,
            "streamed": streamed,
            "background": background,
            "preemptible": preemptible,
            "light": light,
            "detached": detached,
        }
        return cls(kind=cls.OPENAI, payload=payload, **common)

    @property
    def body(self) -> bytes:
        """The body of an ``openai`` request."""
        return base64.b64decode(self.payload["body"])

    def to_json(self) -> str:
        # Not copied deeply: a schema in it may be deep.
        return json.dumps({name: getattr(self, name) for name in _FIELDS}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> "RequestRecord":
        """What a newer version adds is passed over."""
        return cls(**{name: value for name, value in json.loads(text).items() if name in _FIELDS})

    @property
    def tenant(self) -> str:
        """Whose request it is. In the payload, because workers of the version before refuse further fields."""
        return str(self.payload.get("tenant", DEFAULT_TENANT))

    @property
    def resumable(self) -> bool:
        """Whether a client that left may come back for the rest."""
        return self.kind == self.GENERATE or bool(self.payload.get("streamed"))

    @property
    def background(self) -> bool:
        """Whether it is a line of a batch, which nobody waits for."""
        return bool(self.payload.get("background"))

    @property
    def light(self) -> bool:
        """Whether it takes no turn at the engine."""
        return bool(self.payload.get("light"))

    @property
    def detached(self) -> bool:
        """Whether it goes on while nobody follows it."""
        return bool(self.payload.get("detached"))

    @property
    def preemptible(self) -> bool:
        """Whether its worker may stop it for a request that somebody waits for."""
        return bool(self.payload.get("preemptible"))

    def lifetime(self, ttl: int) -> int:
        """Return how long what belongs to it must be kept, in seconds: to its deadline and ``ttl`` beyond."""
        return max(1, int(self.deadline - time.time())) + ttl

    @property
    def trace_id(self) -> str:
        """What its client knows it by: its own word for it, or the id."""
        return self.metadata.get("traceId") or self.id

    @property
    def log_fields(self) -> dict[str, str]:
        """The fields on every log line of the request, in every process."""
        trace = self.payload.get("trace_id")
        return {"request_id": self.id, "model": self.model, **({"trace_id": trace} if trace else {}), **self.metadata}


_FIELDS = frozenset(field.name for field in fields(RequestRecord))


class RequestStore:
    """Records live until some time after their deadline."""

    def __init__(self, client: redis.Redis, ttl: int) -> None:
        self.client = client
        self._ttl = ttl

    def save(self, record: RequestRecord, client: redis.Redis | None = None) -> None:
        """Keep a record; through ``client``, a pipeline, where one is given."""
        keeping = self.client if client is None else client
        keeping.set(redis_keys.request(record.id), record.to_json(), ex=record.lifetime(self._ttl))

    def load(self, request_id: str) -> RequestRecord | None:
        text = self.client.get(redis_keys.request(request_id))
        return RequestRecord.from_json(text) if text else None


async def load_batched(commands: CommandBatcher, request_id: str) -> RequestRecord | None:
    """As :meth:`RequestStore.load`, on a worker's loop, in one round trip with what else is sent."""
    text = await commands.execute("GET", redis_keys.request(request_id))
    return RequestRecord.from_json(text) if text else None

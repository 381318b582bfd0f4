"""What a client asks for, checked by its face, and what becomes of it when it is admitted."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from engines.model_spec import Task
from engines.types import Sampling
from services.inference.routing import Route
from store.redis.request_records import RequestRecord


@dataclass(frozen=True)
class GenerationRequest:
    """A text to continue, through the native interface."""

    model: str
    prompt: str = field(repr=False)
    #: A conversation, in place of a prompt.
    messages: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    adapter: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    #: 0 to 9; higher is served first.
    priority: int = 0
    #: The worker that the client would like; another may take it.
    worker_hint: str = ""
    #: traceId, tenant, playerId, locale, as the client gave them.
    metadata: dict[str, str] = field(default_factory=dict)
    #: Whether each chunk carries the metadata.
    with_metadata: bool = False
    #: Whether the answer tells how fast it came.
    tells_performance: bool = False
    #: The whole body: the same idempotency key with another one is a conflict.
    body: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class OpenAIRequest:
    """A call of the OpenAI-compatible API: a body for vLLM's own application in the worker."""

    #: A model's id, or an adapter's name.
    model: str
    path: str
    #: As the client sent it, checked.
    body: dict[str, Any] = field(repr=False)
    #: Whether the client named a model, or leaves it to the system.
    model_given: bool = True
    #: What the model must be for.
    tasks: tuple[str, ...] = (Task.GENERATE,)
    #: Whether its answer tells how fast it came.
    tells_performance: bool = False
    #: A line of a batch: it waits behind everybody who is there.
    background: bool = False
    #: Whether it makes room while it runs.
    preemptible: bool = False
    #: It goes on without its client.
    detached: bool = False
    #: It takes no turn at the engine: it is served although others wait, and before them.
    light: bool = False
    #: Called with the record of a new request before it is sent; what it makes is kept under that request's id.
    on_record: Callable[[RequestRecord], None] | None = None
    #: Called with that record where the client got an error instead of the beginning of an answer.
    on_refusal: Callable[[RequestRecord], None] | None = None


@dataclass(frozen=True)
class Submission:
    """A request that may begin, or (``route`` None) one that an earlier call has begun."""

    record: RequestRecord
    route: Route | None
    #: The Redis key of its idempotency key, forgotten when the request cannot be sent.
    idempotency_name: str | None = None

"""The calls that go to a worker's application as they are: what is checked of them, and what models they need."""

from dataclasses import dataclass
from typing import Any

from marshmallow import Schema

from engines.model_spec import Task
from engines.registry import DEFAULT_ALIAS
from services.inference.submission import OpenAIRequest
from webapp.openai.schemas import (
    ChatSchema,
    ClassifySchema,
    CompletionSchema,
    EmbeddingSchema,
    RerankSchema,
    ScoreSchema,
)


@dataclass(frozen=True)
class Endpoint:
    """A call, whatever path it came by."""

    schema: type[Schema]
    #: What the model must be for.
    tasks: tuple[str, ...] = (Task.GENERATE,)


#: By the path of the worker's application.
ENDPOINTS = {
    "/v1/chat/completions": Endpoint(ChatSchema),
    "/v1/completions": Endpoint(CompletionSchema),
    "/v1/embeddings": Endpoint(EmbeddingSchema, (Task.EMBED,)),
    "/v1/score": Endpoint(ScoreSchema, (Task.SCORE, Task.EMBED)),
    "/v1/rerank": Endpoint(RerankSchema, (Task.SCORE, Task.EMBED)),
    "/classify": Endpoint(ClassifySchema, (Task.CLASSIFY,)),
}


def to_request(path: str, body: dict[str, Any]) -> OpenAIRequest:
    """Return a body that its endpoint's schema has loaded as services take it."""
    model, timed = body.get("model"), body.pop("include_performance", None) or False
    return OpenAIRequest(model or DEFAULT_ALIAS, path, body, model is not None, ENDPOINTS[path].tasks, timed)

"""Bodies of the native interface. Names, defaults and limits are the interface document's."""

from typing import Any

from marshmallow import fields, pre_load, validate

from engines.types import Sampling
from services.inference.submission import GenerationRequest
from webapp.schemas.loading import Integer, Name, Number, StrictSchema, cached_schema

_SNAKE = {"trace_id": "traceId", "player_id": "playerId"}
#: Names of the metadata, in both styles.
_KNOWN = {"traceId", "tenant", "playerId", "locale", *_SNAKE}


class GenerationSchema(StrictSchema):
    """How to generate; what is left out is ``services.inference.generation_defaults``' to fill."""

    maxNewTokens = Integer(validate=validate.Range(min=1), metadata={"description": "At most this many new tokens"})
    temperature = Number(validate=validate.Range(min=0.0, max=2.0))
    topP = Number(validate=validate.Range(min=0.0, max=1.0, min_inclusive=False))
    repetitionPenalty = Number(validate=validate.Range(min=0.0, max=10.0, min_inclusive=False))


class MetadataSchema(StrictSchema):
    """What the client wants to find again in its stream and in the logs."""

    traceId = Name(validate=validate.Length(max=256))
    tenant = Name(validate=validate.Length(max=256))
    playerId = Name(validate=validate.Length(max=256))
    locale = Name(validate=validate.Length(max=64))

    @pre_load
    def accept_snake_case(self, data: Any, **_: Any) -> Any:
        """The document names the fields in both styles."""
        if not isinstance(data, dict):
            return data
        return {_SNAKE.get(key, key): value for key, value in data.items() if value is not None or key not in _KNOWN}


class InferenceSchema(StrictSchema):
    """A request for text."""

    modelId = Name(required=True, validate=validate.Length(min=1, max=64))
    prompt = fields.String(required=True, validate=validate.Length(min=1, error="The prompt must not be empty."))
    adapter = Name(load_default="", validate=validate.Length(max=256))
    generation = fields.Nested(GenerationSchema, load_default=lambda: cached_schema(GenerationSchema).load({}))
    metadata = fields.Nested(MetadataSchema, load_default=dict)
    priority = Integer(load_default=0, validate=validate.Range(min=0, max=9))
    workerHint = Name(load_default="", validate=validate.Length(max=128))


def to_request(body: dict[str, Any], with_metadata: bool) -> GenerationRequest:
    """Return a loaded ``InferenceSchema`` as services take it; ``with_metadata``: each chunk carries the metadata."""
    generation = body["generation"]
    return GenerationRequest(
        model=body["modelId"],
        prompt=body["prompt"],
        adapter=body["adapter"] or None,
        sampling=Sampling(
            max_new_tokens=generation.get("maxNewTokens"),
            temperature=generation.get("temperature"),
            top_p=generation.get("topP"),
            repetition_penalty=generation.get("repetitionPenalty"),
        ),
        priority=body["priority"],
        worker_hint=body["workerHint"],
        metadata=body["metadata"],
        with_metadata=with_metadata,
        body=body,
    )

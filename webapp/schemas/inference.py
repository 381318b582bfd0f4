"""Bodies of the native interface. Names, defaults and limits are the interface document's."""

from typing import Any

from marshmallow import INCLUDE, ValidationError, fields, pre_load, validate, validates_schema

from engines.types import Sampling
from services.inference.submission import GenerationRequest
from webapp.schemas.loading import Flag, Integer, Name, Number, StrictSchema, cached_schema

#: vLLM's bounds for whole numbers.
_MOST = 2**63 - 1
#: Each is looked for in every new piece of text.
_MAX_STOPS = 16
#: Of a schema.
_MAX_DEPTH = 100
_SNAKE = {"trace_id": "traceId", "player_id": "playerId"}
#: Names of the metadata, in both styles.
_KNOWN = {"traceId", "tenant", "playerId", "locale", *_SNAKE}


class StopTexts(fields.Field[list[str]]):
    """One text, or several."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> list[str]:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
            raise ValidationError("Must be a text or a list of texts, none of them empty.")
        if len(texts) > _MAX_STOPS:
            raise ValidationError(f"At most {_MAX_STOPS} texts.")
        return texts


class GenerationSchema(StrictSchema):
    """How to generate; what is left out is ``services.inference.generation_defaults``' to fill."""

    maxNewTokens = Integer(validate=validate.Range(min=1), metadata={"description": "At most this many new tokens"})
    temperature = Number(validate=validate.Range(min=0.0, max=2.0))
    topP = Number(validate=validate.Range(min=0.0, max=1.0, min_inclusive=False))
    repetitionPenalty = Number(validate=validate.Range(min=0.0, max=10.0, min_inclusive=False))
    topK = Integer(validate=validate.Range(min=0, max=_MOST))
    minP = Number(validate=validate.Range(min=0.0, max=1.0))
    presencePenalty = Number(validate=validate.Range(min=-2.0, max=2.0))
    frequencyPenalty = Number(validate=validate.Range(min=-2.0, max=2.0))
    seed = Integer(validate=validate.Range(min=-_MOST - 1, max=_MOST))
    stop = StopTexts()
    responseFormat = fields.Nested(lambda: ResponseFormatSchema())


def _require_shallow(schema: Any) -> None:
    level = [schema]
    for _ in range(_MAX_DEPTH):
        level = [
            part
            for value in level
            for part in (value.values() if isinstance(value, dict) else value)
            if isinstance(part, dict | list)
        ]
        if not level:
            return
    raise ValidationError(f"Nested more than {_MAX_DEPTH} deep.")


class JsonSchemaSchema(StrictSchema):
    """OpenAI's ``json_schema``."""

    name = fields.String()
    description = fields.String()
    schema = fields.Dict(required=True, validate=_require_shallow)
    strict = Flag()


class ResponseFormatSchema(StrictSchema):
    """The form of an answer, in OpenAI's words."""

    type = fields.String(required=True, validate=validate.OneOf(["text", "json_object", "json_schema"]))
    json_schema = fields.Nested(JsonSchemaSchema)

    @validates_schema(skip_on_field_errors=True)
    def _check(self, body: dict[str, Any], **_: Any) -> None:
        if (body["type"] == "json_schema") != ("json_schema" in body):
            raise ValidationError("Goes with the type 'json_schema', and with no other.", "json_schema")


class TextPartSchema(StrictSchema):
    """A part of a turn. Pictures and the like are told by who knows what the model reads."""

    class Meta:
        unknown = INCLUDE

    type = fields.String(required=True)


class TurnContent(fields.Field[Any]):
    """Text, or a list of parts."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        if isinstance(value, str):
            return value
        if not isinstance(value, list) or not value:
            raise ValidationError("Must be text, or a list of parts.")
        parts = cached_schema(TextPartSchema).load(value, many=True)
        for index, part in enumerate(parts):
            if part["type"] == "text" and not isinstance(part.get("text"), str):
                raise ValidationError({index: {"text": ["Must be text."]}})
        return parts


class TurnSchema(StrictSchema):
    """One turn of a conversation."""

    role = fields.String(required=True, validate=validate.OneOf(["system", "developer", "user", "assistant"]))
    content = TurnContent(required=True)


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
    prompt = fields.String(validate=validate.Length(min=1, error="The prompt must not be empty."))
    #: A conversation, in place of a prompt.
    messages = fields.List(fields.Nested(TurnSchema), validate=validate.Length(min=1))
    adapter = Name(load_default="", validate=validate.Length(max=256))
    generation = fields.Nested(GenerationSchema, load_default=lambda: cached_schema(GenerationSchema).load({}))
    metadata = fields.Nested(MetadataSchema, load_default=dict)
    #: The answer tells how fast it came.
    includePerformance = Flag(load_default=False)
    priority = Integer(load_default=0, validate=validate.Range(min=0, max=9))
    workerHint = Name(load_default="", validate=validate.Length(max=128))

    @validates_schema(skip_on_field_errors=True)
    def _check(self, body: dict[str, Any], **_: Any) -> None:
        if "prompt" not in body and "messages" not in body:
            raise ValidationError("Missing data for required field.", "prompt")
        if "prompt" in body and "messages" in body:
            raise ValidationError("Give one of 'prompt' and 'messages'.", "messages")


def to_request(body: dict[str, Any], with_metadata: bool) -> GenerationRequest:
    """Return a loaded ``InferenceSchema`` as services take it; ``with_metadata``: each chunk carries the metadata."""
    generation = body["generation"]
    return GenerationRequest(
        model=body["modelId"],
        prompt=body.get("prompt", ""),
        messages=tuple(body.get("messages", ())),
        adapter=body["adapter"] or None,
        sampling=Sampling(
            max_new_tokens=generation.get("maxNewTokens"),
            temperature=generation.get("temperature"),
            top_p=generation.get("topP"),
            repetition_penalty=generation.get("repetitionPenalty"),
            top_k=generation.get("topK"),
            min_p=generation.get("minP"),
            presence_penalty=generation.get("presencePenalty"),
            frequency_penalty=generation.get("frequencyPenalty"),
            seed=generation.get("seed"),
            stop=tuple(generation.get("stop", ())),
            response_format=generation.get("responseFormat"),
        ),
        priority=body["priority"],
        worker_hint=body["workerHint"],
        metadata=body["metadata"],
        with_metadata=with_metadata,
        tells_performance=body["includePerformance"],
        body=body,
    )

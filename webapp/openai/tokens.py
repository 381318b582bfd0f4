"""The views of ``/tokenize`` and ``/detokenize``: texts to a model's tokens and back, as vLLM's server has them."""

from typing import Any

from flask import Blueprint, Response
from marshmallow import Schema, ValidationError, fields, validate, validates_schema

from engines.model_spec import Task
from engines.registry import DEFAULT_ALIAS
from services.inference.submission import OpenAIRequest
from webapp.gunicorn.admission_gate import serialized
from webapp.http.parsing import parse_body
from webapp.openai.relay import relay
from webapp.openai.schemas import Including
from webapp.schemas.loading import Integer, Name

bp = Blueprint("tokens", __name__)

#: The largest token id that any model's tables are asked for.
_MAX_TOKEN = 2**31 - 1
_MAX_TOKENS = 1_000_000
_ALL_TASKS = (Task.GENERATE, Task.EMBED, Task.SCORE, Task.CLASSIFY)


class TokenizeSchema(Including):
    """A text, or a conversation."""

    model = Name(validate=validate.Length(min=1, max=256))
    prompt = fields.String()
    messages = fields.List(fields.Dict(), validate=validate.Length(min=1))
    tools = fields.List(fields.Dict())

    @validates_schema(skip_on_field_errors=True)
    def _check(self, body: dict[str, Any], **_: Any) -> None:
        if ("prompt" in body) == ("messages" in body):
            raise ValidationError("Give one of 'prompt' and 'messages'.", "prompt")


class DetokenizeSchema(Including):
    """Tokens."""

    model = Name(validate=validate.Length(min=1, max=256))
    tokens = fields.List(
        Integer(validate=validate.Range(min=0, max=_MAX_TOKEN)),
        required=True,
        validate=validate.Length(max=_MAX_TOKENS),
    )


@bp.post("/tokenize")
@serialized
def tokenize() -> Response:
    """The tokens of a text, or of a conversation through the chat template."""
    return _relay("/tokenize", TokenizeSchema)


@bp.post("/detokenize")
@serialized
def detokenize() -> Response:
    """The text of tokens."""
    return _relay("/detokenize", DetokenizeSchema)


def _relay(path: str, schema: type[Schema]) -> Response:
    body = parse_body(schema)
    model = body.get("model")
    return relay(
        OpenAIRequest(model or DEFAULT_ALIAS, path, body, model is not None, _ALL_TASKS, light=True), streamed=False
    )

"""The views of ``/v1/messages``: Anthropic's API."""

from flask import Blueprint, Response

from services.inference.submission import OpenAIRequest
from webapp.gunicorn.admission_gate import serialized
from webapp.http.parsing import parse_body
from webapp.openai.dialects import AnthropicDialect
from webapp.openai.message_schemas import CountTokensSchema, MessagesSchema
from webapp.openai.relay import relay

bp = Blueprint("messages", __name__, url_prefix="/v1/messages")


@bp.post("")
@serialized
def create() -> Response:
    """A message, whole or streamed."""
    body = parse_body(MessagesSchema)
    timed = bool(body.pop("include_performance", None))
    request = OpenAIRequest(body["model"], "/v1/messages", body, tells_performance=timed)
    return relay(request, bool(body.get("stream")), AnthropicDialect)


@bp.post("/count_tokens")
@serialized
def count_tokens() -> Response:
    """How many tokens a message would send to the model."""
    body = parse_body(CountTokensSchema)
    request = OpenAIRequest(body["model"], "/v1/messages/count_tokens", body, light=True)
    return relay(request, streamed=False, dialect=AnthropicDialect)

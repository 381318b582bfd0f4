"""The views of ``/v1``."""

from typing import Any

from flask import Blueprint, Response, jsonify

from services.inference.submission import OpenAIRequest
from store.sql.adapters import reference
from store.sql.tables import Adapter
from webapp.gunicorn.admission_gate import serialized
from webapp.http.current import principal, services
from webapp.http.parsing import parse_body
from webapp.openai.relay import relay
from webapp.openai.schemas import DEFAULT_MAX_TOKENS, DEFAULTS, ChatSchema

bp = Blueprint("openai", __name__, url_prefix="/v1")
health_bp = Blueprint("openai_health", __name__)


@bp.post("/chat/completions")
@serialized
def chat_completions() -> Response:
    """Chat, whole or streamed."""
    body = parse_body(ChatSchema)
    path = "/v1/chat/completions"
    return relay(OpenAIRequest(body["model"], path, _with_defaults(body), body), streamed=bool(body.get("stream")))


@bp.get("/models")
def list_models() -> Response:
    """The models that can be asked now, and what adapters' names mean on them."""
    specs, adapters = services().models.served(principal())
    data = [_describe_model(spec.id) for spec in specs] + [_describe_adapter(adapter) for adapter in adapters]
    return jsonify({"object": "list", "data": data})


@bp.get("/models/<model_id>")
def show_model(model_id: str) -> Response:
    """One model."""
    spec, adapter = services().models.resolve_with_adapter(principal(), model_id)
    if adapter is not None:
        return jsonify({**_describe_adapter(adapter), "id": model_id})
    return jsonify(_describe_model(spec.id))


@health_bp.get("/health")
def health() -> Response:
    """The process answers."""
    return jsonify({"status": "ok"})


def _describe_model(model_id: str) -> dict[str, Any]:
    created = int(services().lifecycle.started_at.timestamp())
    return {"id": model_id, "object": "model", "created": created, "owned_by": "cy-llm"}


def _describe_adapter(adapter: Adapter) -> dict[str, Any]:
    return {
        "id": adapter.name,
        "object": "model",
        "created": int(adapter.created_at.timestamp()),
        "owned_by": "cy-llm",
        "root": reference(adapter),
        "parent": adapter.base_model,
    }


def _with_defaults(body: dict[str, Any]) -> dict[str, Any]:
    # A null is what a client sends that does not care.
    given = {key: value for key, value in body.items() if value is not None}
    if "max_completion_tokens" not in given:
        given.setdefault("max_tokens", DEFAULT_MAX_TOKENS)
    return {**DEFAULTS, **given}

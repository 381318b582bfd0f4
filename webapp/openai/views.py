"""The views of ``/v1``."""

from typing import Any

from flask import Blueprint, Response, jsonify

from webapp import generation
from webapp.bodies import parse
from webapp.openai.relay import relay
from webapp.openai.schemas import DEFAULT_MAX_TOKENS, DEFAULTS, ChatSchema
from webapp.services import STARTED, services

bp = Blueprint("openai", __name__, url_prefix="/v1")
health_bp = Blueprint("openai_health", __name__)


@bp.post("/chat/completions")
def chat_completions() -> Response:
    """Chat, whole or streamed."""
    body = parse(ChatSchema())
    spec = generation.resolve(services(), body["model"], "model")
    return relay(services(), spec, "/v1/chat/completions", _with_defaults(body))


@bp.get("/models")
def list_models() -> Response:
    """The models that can be asked now."""
    fleet = services().presence.fleet()
    served = [spec for spec in services().registry.models.values() if fleet.serving(spec.id)]
    created = int(STARTED.timestamp())
    data = [{"id": spec.id, "object": "model", "created": created, "owned_by": "cy-llm"} for spec in served]
    return jsonify({"object": "list", "data": data})


@bp.get("/models/<model_id>")
def show_model(model_id: str) -> Response:
    """One model."""
    spec = generation.resolve(services(), model_id, "model")
    created = int(STARTED.timestamp())
    return jsonify({"id": spec.id, "object": "model", "created": created, "owned_by": "cy-llm"})


@health_bp.get("/health")
def health() -> Response:
    """The process answers."""
    return jsonify({"status": "ok"})


def _with_defaults(body: dict[str, Any]) -> dict[str, Any]:
    # A null is what a client sends that does not care.
    given = {key: value for key, value in body.items() if value is not None}
    if "max_completion_tokens" not in given:
        given.setdefault("max_tokens", DEFAULT_MAX_TOKENS)
    return {**DEFAULTS, **given}

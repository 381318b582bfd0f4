"""The views of ``/v1``."""

from typing import Any

from flask import Blueprint, Response, jsonify

from engines.errors import UnknownModel
from engines.registry import ModelSpec
from store.adapters import reference
from store.models import Adapter
from webapp import generation
from webapp.bodies import parse
from webapp.openai.relay import relay
from webapp.openai.schemas import DEFAULT_MAX_TOKENS, DEFAULTS, ChatSchema
from webapp.services import STARTED, services
from webapp.turns import in_turn

bp = Blueprint("openai", __name__, url_prefix="/v1")
health_bp = Blueprint("openai_health", __name__)


@bp.post("/chat/completions")
@in_turn
def chat_completions() -> Response:
    """Chat, whole or streamed."""
    body = parse(ChatSchema)
    spec, adapter = _find(body["model"])
    return relay(services(), spec, "/v1/chat/completions", _with_defaults(body), adapter)


@bp.get("/models")
def list_models() -> Response:
    """The models that can be asked now."""
    fleet = services().presence.fleet()
    served = [spec for spec in services().registry.models.values() if fleet.serving(spec.id)]
    created = int(STARTED.timestamp())
    data = [{"id": spec.id, "object": "model", "created": created, "owned_by": "cy-llm"} for spec in served]
    meant = services().adapters.aliases()
    for spec in served:
        for adapter in services().adapters.all(spec.id):
            if meant.get(adapter.name) == adapter.version:
                data.append(_describe_adapter(adapter))
    return jsonify({"object": "list", "data": data})


@bp.get("/models/<model_id>")
def show_model(model_id: str) -> Response:
    """One model."""
    spec, adapter = _find(model_id)
    if adapter is not None:
        return jsonify({**_describe_adapter(adapter), "id": model_id})
    created = int(STARTED.timestamp())
    return jsonify({"id": spec.id, "object": "model", "created": created, "owned_by": "cy-llm"})


@health_bp.get("/health")
def health() -> Response:
    """The process answers."""
    return jsonify({"status": "ok"})


def _find(name: str) -> tuple[ModelSpec, Adapter | None]:
    """Return the model called ``name``, or the adapter called that with its model. Raises ``ApiError`` (404)."""
    own = services()
    adapter = None
    try:
        return own.registry.resolve(name), None
    except UnknownModel:
        adapter = own.adapters.resolve(name)
    return generation.resolve(own, adapter.base_model if adapter else name, "model"), adapter


def _describe_adapter(adapter: Adapter) -> dict[str, Any]:
    created = int(adapter.created_at.timestamp())
    return {
        "id": adapter.name,
        "object": "model",
        "created": created,
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

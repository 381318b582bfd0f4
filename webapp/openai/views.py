"""The views of ``/v1``."""

import json
from http import HTTPStatus
from typing import Any

from flask import Blueprint, Response, jsonify

from engines.registry import DEFAULT_ALIAS
from services.errors import ModelNotDeletable
from store.sql.adapters import reference
from store.sql.tables import Adapter
from webapp.gunicorn.admission_gate import serialized
from webapp.http.current import principal, services
from webapp.http.parsing import parse_body
from webapp.openai.endpoints import ENDPOINTS, to_request
from webapp.openai.relay import relay

bp = Blueprint("openai", __name__, url_prefix="/v1")
#: What changes what others get: for those who may train.
admin_bp = Blueprint("openai_admin", __name__, url_prefix="/v1")
#: The paths that vLLM's server, and clients made for others, know some of them by.
root = Blueprint("openai_root", __name__)


@bp.post("/chat/completions")
@serialized
def chat_completions() -> Response:
    """Chat, whole or streamed."""
    return _relay("/v1/chat/completions")


@bp.post("/completions")
@serialized
def completions() -> Response:
    """A text continued, whole or streamed; no chat template."""
    return _relay("/v1/completions")


@bp.post("/embeddings")
@serialized
def embeddings() -> Response:
    """The vectors of texts."""
    return _relay("/v1/embeddings")


@bp.post("/score")
@root.post("/score", endpoint="score_root")
@serialized
def score() -> Response:
    """How well pairs of texts fit."""
    return _relay("/v1/score")


@bp.post("/rerank")
@root.post("/rerank", endpoint="rerank_root")
@root.post("/v2/rerank", endpoint="rerank_v2")
@serialized
def rerank() -> Response:
    """Documents, the one that fits a query best first."""
    path = "/v1/rerank"
    body = parse_body(ENDPOINTS[path].schema)
    shown = body.pop("return_documents", True)
    answer = relay(to_request(path, body), streamed=False)
    return answer if shown or answer.status_code != HTTPStatus.OK else _without_documents(answer)


@bp.post("/classify")
@root.post("/classify", endpoint="classify_root")
@serialized
def classify() -> Response:
    """The classes of texts, with their probabilities."""
    return _relay("/classify")


@bp.get("/models")
def list_models() -> Response:
    """The models that can be asked now, and what adapters' names mean on them."""
    catalog = services().models
    specs, adapters = catalog.served(principal())
    data = [_describe_model(spec.id, spec.id) for spec in specs]
    # A picker shows only what is listed.
    for spec in specs:
        aliases = catalog.registry.aliases_of(spec.id)
        # Of every installation there is a "default": it is what a request without a model gets, no model to pick.
        data += [_describe_model(alias, spec.id) for alias in aliases if alias != DEFAULT_ALIAS]
    served = {spec.id for spec in specs}
    checkpoints = [each for each in services().adapters.checkpoints(principal()) if each.base_model in served]
    data += [_describe_adapter(adapter) for adapter in [*adapters, *checkpoints]]
    return jsonify({"object": "list", "data": data})


@bp.get("/models/<path:model_id>")
def show_model(model_id: str) -> Response:
    """One model."""
    named = services().models.resolve_name(principal(), model_id)
    if named.adapter is not None:
        return jsonify({**_describe_adapter(named.adapter), "id": model_id})
    return jsonify(_describe_model(model_id, named.spec.id))


@admin_bp.delete("/models/<path:model_id>")
def delete_model(model_id: str) -> Response:
    """Delete what was fine-tuned: an adapter, or a checkpoint. What runs on it ends on it."""
    named = services().models.resolve_name(principal(), model_id)
    if named.adapter is None:
        raise ModelNotDeletable(model_id)
    services().adapters.delete(principal(), model_id)
    return jsonify({"id": model_id, "object": "model", "deleted": True})


def _describe_model(name: str, model: str) -> dict[str, Any]:
    """A model by its id, or by a name that stands for it."""
    created = int(services().lifecycle.started_at.timestamp())
    described = {"id": name, "object": "model", "created": created, "owned_by": "cy-llm"}
    return {**described, **({} if name == model else {"root": model}), **_length(model)}


def _describe_adapter(adapter: Adapter) -> dict[str, Any]:
    return {
        "id": adapter.model_name or adapter.name,
        "object": "model",
        "created": int(adapter.created_at.timestamp()),
        "owned_by": "cy-llm",
        "root": reference(adapter),
        "parent": adapter.base_model,
        **_length(adapter.base_model),
    }


def _length(model: str) -> dict[str, int]:
    """As vLLM's own server tells it; clients cut their history by it."""
    length = services().models.context_length(model)
    return {} if length is None else {"max_model_len": length}


def _without_documents(answer: Response) -> Response:
    """The engine always shows them."""
    found = json.loads(answer.data)
    found["results"] = [{k: v for k, v in result.items() if k != "document"} for result in found["results"]]
    answer.set_data(json.dumps(found))
    return answer


def _relay(path: str) -> Response:
    body = parse_body(ENDPOINTS[path].schema)
    return relay(to_request(path, body), bool(body.get("stream")))

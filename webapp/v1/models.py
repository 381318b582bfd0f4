"""``/api/v1/models``: what is configured, and what is really being served."""

from typing import Any

from flask import Blueprint, Response, jsonify

from services.models import ModelView
from webapp.http.current import principal, services

bp = Blueprint("models", __name__, url_prefix="/api/v1")


@bp.get("/models")
def list_models() -> Response:
    """All configured models, with the state of their workers."""
    return jsonify({"models": [_summary(view) for view in services().models.views(principal())]})


@bp.get("/models/<model_id>")
def show_model(model_id: str) -> Response:
    """One model, with its configuration."""
    view = services().models.show(principal(), model_id)
    spec = view.spec
    return jsonify(
        {
            "id": spec.id,
            "name": spec.name,
            "engine": spec.engine,
            "modelPath": spec.model_path,
            "status": view.status,
            "capabilities": view.capabilities,
            **_adapters(view),
            "config": {
                "maxModelLen": view.max_model_len,
                "gpuMemoryUtilization": view.gpu_memory_utilization,
                "tensorParallelSize": spec.tensor_parallel_size,
            },
        }
    )


def _summary(view: ModelView) -> dict[str, Any]:
    return {
        "id": view.spec.id,
        "name": view.spec.name,
        "engine": view.spec.engine,
        "status": view.status,
        "capabilities": view.capabilities,
        "maxModelLen": view.max_model_len,
        **_adapters(view),
    }


def _adapters(view: ModelView) -> dict[str, Any]:
    return {} if view.adapters is None else {"loraAdapters": view.adapters}

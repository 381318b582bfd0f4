"""``/api/v1/models``: what is configured, and what is really being served."""

from typing import Any

from flask import Blueprint, Response, jsonify

from engines.registry import ModelSpec
from store.presence import Fleet
from webapp import generation
from webapp.services import services

bp = Blueprint("models", __name__, url_prefix="/api/v1")

#: vLLM's default, shown where the model file leaves the value open.
_DEFAULT_GPU_MEMORY_UTILIZATION = 0.92


@bp.get("/models")
def list_models() -> Response:
    """All configured models, with the state of their workers."""
    fleet = services().presence.fleet()
    return jsonify({"models": [_summary(spec, fleet) for spec in services().registry.models.values()]})


@bp.get("/models/<model_id>")
def show_model(model_id: str) -> Response:
    """One model, with its configuration."""
    spec = generation.resolve(services(), model_id, "modelId")
    fleet = services().presence.fleet()
    return jsonify(
        {
            "id": spec.id,
            "name": spec.name,
            "engine": spec.engine,
            "modelPath": spec.model_path,
            "status": status_of(spec, fleet),
            "capabilities": _capabilities(spec),
            **_adapters(spec),
            "config": {
                "maxModelLen": _max_model_len(spec, fleet),
                "gpuMemoryUtilization": spec.gpu_memory_utilization or _DEFAULT_GPU_MEMORY_UTILIZATION,
                "tensorParallelSize": spec.tensor_parallel_size,
            },
        }
    )


def _summary(spec: ModelSpec, fleet: Fleet) -> dict[str, Any]:
    return {
        "id": spec.id,
        "name": spec.name,
        "engine": spec.engine,
        "status": status_of(spec, fleet),
        "capabilities": _capabilities(spec),
        "maxModelLen": _max_model_len(spec, fleet),
        **_adapters(spec),
    }


def _capabilities(spec: ModelSpec) -> list[str]:
    return ["inference", "stream", "training"] if spec.takes_adapters else ["inference", "stream"]


def _adapters(spec: ModelSpec) -> dict[str, Any]:
    """The names that a request may give as its adapter, where the model takes any."""
    if not spec.takes_adapters:
        return {}
    own = services().adapters
    meant = own.aliases()
    return {"loraAdapters": [row.name for row in own.all(spec.id) if meant.get(row.name) == row.version]}


def status_of(spec: ModelSpec, fleet: Fleet) -> str:
    """``ready``, ``loading`` or ``unavailable``."""
    if fleet.serving(spec.id):
        return "ready"
    return "loading" if fleet.loading(spec.id) else "unavailable"


def _max_model_len(spec: ModelSpec, fleet: Fleet) -> int | None:
    """What a worker really runs with (tuning may have lowered it), else what is configured."""
    info = fleet.engine_info(spec.id)
    return info["max_model_len"] if info else spec.max_model_len

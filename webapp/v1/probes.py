"""Addresses without a key, on every port: whether the process lives, and whether it can serve."""

from flask import Blueprint, Response, jsonify

from webapp.http.current import services

bp = Blueprint("probes", __name__)


@bp.get("/")
def index() -> Response:
    """What this is, for whoever looks whether something answers."""
    return jsonify({"name": "CY-LLM Engine", "status": "ok", "native": "/api/v1", "openai": "/v1"})


@bp.get("/health")
def health() -> Response:
    """The process answers. For a probe of liveness: it asks nobody else."""
    return jsonify({"status": "ok"})


@bp.get("/ready")
def ready() -> Response:
    """200 when Redis answers and a worker serves a model, else 503. For a probe of readiness."""
    up = services().health.report().up
    response = jsonify({"status": "ready" if up else "not ready"})
    response.status_code = 200 if up else 503
    if not up:
        response.headers["Retry-After"] = "5"
    return response

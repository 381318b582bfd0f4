"""``/api/v1/adapters``: what was trained and can be named in a request."""

from typing import Any

from flask import Blueprint, Response, jsonify
from marshmallow import validate

from store.sql.adapters import MAX_VERSION, reference
from store.sql.tables import Adapter
from timestamps import timestamp
from webapp.http.current import principal, services
from webapp.http.parsing import parse_body
from webapp.schemas.loading import Integer, StrictSchema

bp = Blueprint("adapters", __name__, url_prefix="/api/v1/adapters")
#: What changes what others get: for those who may train.
admin_bp = Blueprint("adapters_admin", __name__, url_prefix="/api/v1/adapters")


class PromoteSchema(StrictSchema):
    """Which version a name shall mean."""

    version = Integer(required=True, validate=validate.Range(min=1, max=MAX_VERSION))


@bp.get("")
def list_adapters() -> Response:
    """Every version, by name, newest first."""
    found = services().adapters.versions(principal())
    return jsonify({"adapters": [_describe(adapter, current) for adapter, current in found]})


@admin_bp.delete("/<ref>")
def delete(ref: str) -> Response:
    """Delete ``name@version``, or every version of ``name``. What runs on one ends on it."""
    return jsonify({"deleted": services().adapters.delete(principal(), ref)})


@admin_bp.post("/<name>/promote")
def promote(name: str) -> Response:
    """Let a name mean a version."""
    version = parse_body(PromoteSchema)["version"]
    services().adapters.promote(principal(), name, version)
    return jsonify({"name": name, "version": version})


@admin_bp.post("/<name>/rollback")
def rollback(name: str) -> Response:
    """Let a name mean what it meant before."""
    return jsonify({"name": name, "version": services().adapters.rollback(principal(), name)})


def _describe(adapter: Adapter, current: bool) -> dict[str, Any]:
    return {
        "name": adapter.name,
        "version": adapter.version,
        "reference": reference(adapter),
        "current": current,
        "baseModel": adapter.base_model,
        "rank": adapter.rank,
        "checksum": adapter.checksum,
        "jobId": adapter.job_id or None,
        "metrics": adapter.metrics,
        "createdAt": timestamp(adapter.created_at),
    }

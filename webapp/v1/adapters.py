"""``/api/v1/adapters``: what was trained and can be named in a request."""

from typing import Any

from flask import Blueprint, Response, jsonify
from marshmallow import fields, validate

from store.adapters import reference
from store.models import Adapter
from webapp import errors
from webapp.bodies import parse
from webapp.services import services
from webapp.v1.schemas import StrictSchema

bp = Blueprint("adapters", __name__, url_prefix="/api/v1/adapters")
#: What changes what others get: for those who may train.
admin_bp = Blueprint("adapters_admin", __name__, url_prefix="/api/v1/adapters")


class PromoteSchema(StrictSchema):
    """Which version a name shall mean."""

    version = fields.Integer(strict=True, required=True, validate=validate.Range(min=1))


@bp.get("")
def list_adapters() -> Response:
    """Every version, by name, newest first."""
    own = services()
    meant = own.adapters.aliases()
    return jsonify({"adapters": [_describe(adapter, meant) for adapter in own.adapters.all()]})


@admin_bp.delete("/<ref>")
def delete(ref: str) -> Response:
    """Delete ``name@version``, or every version of ``name``. What runs on one ends on it."""
    name, _, version = ref.partition("@")
    hidden = []
    if not version or version.isdigit():
        hidden = services().adapters.delete(name, int(version) if version else None)
    if not hidden:
        raise errors.adapter_not_found(ref)
    return jsonify({"deleted": [reference(adapter) for adapter in hidden]})


@admin_bp.post("/<name>/promote")
def promote(name: str) -> Response:
    """Let a name mean a version."""
    version = parse(PromoteSchema)["version"]
    if not services().adapters.promote(name, version):
        raise errors.adapter_not_found(f"{name}@{version}")
    return jsonify({"name": name, "version": version})


@admin_bp.post("/<name>/rollback")
def rollback(name: str) -> Response:
    """Let a name mean what it meant before."""
    version = services().adapters.rollback(name)
    if version is None:
        raise errors.adapter_not_found(f"{name}, an earlier version")
    return jsonify({"name": name, "version": version})


def _describe(adapter: Adapter, meant: dict[str, int]) -> dict[str, Any]:
    return {
        "name": adapter.name,
        "version": adapter.version,
        "reference": reference(adapter),
        "current": meant.get(adapter.name) == adapter.version,
        "baseModel": adapter.base_model,
        "rank": adapter.rank,
        "checksum": adapter.checksum,
        "jobId": adapter.job_id or None,
        "metrics": adapter.metrics,
        "createdAt": adapter.created_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }

"""``/api/v1/models``: the models, what is really being served, and for operators how to change that."""

from typing import Any

from flask import Blueprint, Response, jsonify, request
from marshmallow import INCLUDE, validate

from services.errors import InvalidRequest
from services.model_changes import ModelAction
from services.models import ModelView
from store.principal import Scope
from store.sql.tables import ModelChange
from timestamps import timestamp, unix_timestamp
from webapp.http import body
from webapp.http.current import principal, services
from webapp.http.parsing import parse_body
from webapp.schemas.loading import Flag, Name, NullIsAbsentSchema, StrictSchema, json_object, load

bp = Blueprint("models", __name__, url_prefix="/api/v1")
#: What changes what everybody gets: for operators.
admin_bp = Blueprint("models_admin", __name__, url_prefix="/api/v1/models")


class AddSchema(NullIsAbsentSchema):
    """``id``, the model file's keys, and whether to load it at once."""

    class Meta:
        unknown = INCLUDE

    id = Name(required=True, validate=validate.Length(min=1, max=64))
    load_now = Flag(data_key="load")
    worker = Name(load_default="", validate=validate.Length(max=128))


class LoadSchema(StrictSchema):
    """Where to load."""

    worker = Name(load_default="", validate=validate.Length(max=128))


class UnloadSchema(StrictSchema):
    """Where to unload, and whether answers are waited for."""

    worker = Name(load_default="", validate=validate.Length(max=128))
    force = Flag()


@bp.get("/models")
def list_models() -> Response:
    """All models, with the state of their workers."""
    catalog = services().models
    answer: dict[str, Any] = {"models": [_summary(view) for view in catalog.views(principal())]}
    if catalog.catalogue.faults and _operates():
        answer["faults"] = dict(catalog.catalogue.faults)
    return jsonify(answer)


@bp.get("/models/<model_id>")
def show_model(model_id: str) -> Response:
    """One model, with its configuration."""
    return jsonify(_detailed(services().models.show(principal(), model_id)))


@admin_bp.post("")
def add() -> tuple[Response, int]:
    """Add a model that the model file does not have."""
    # What is null is left out of the entry as well.
    given = load(AddSchema, json_object(body.read()))
    model, worker = given.pop("id"), given.pop("worker")
    load_now = given.pop("load_now", False)
    if load_now:
        # Before anything is written.
        services().model_changes.require_worker(worker)
    services().model_changes.add(principal(), model, given)
    if load_now:
        services().model_changes.load(principal(), model, worker)
    added = _detailed(services().models.show(principal(), model))
    if load_now and added["status"] == "unavailable":
        # Its worker has not seen it yet.
        added["status"] = "loading"
    return jsonify(added), 201


@admin_bp.patch("/<model_id>")
def change(model_id: str) -> Response:
    """Lay values over a model's entry; null takes a key out. ``If-Match`` is the revision that was looked at."""
    spec = services().model_changes.change(principal(), model_id, json_object(body.read()), _revision_seen())
    return jsonify(_detailed(services().models.show(principal(), spec.id)))


@admin_bp.post("/<model_id>/reset")
def reset(model_id: str) -> Response:
    """Drop what lies over the model file's entry."""
    model = services().model_changes.reset(principal(), model_id)
    if model not in services().models.registry.models:
        # The file does not have it any more: nothing is left of it.
        return jsonify({"id": model, "status": "unavailable"})
    return jsonify(_detailed(services().models.show(principal(), model)))


@admin_bp.delete("/<model_id>")
def remove(model_id: str) -> tuple[Response, int]:
    """Take away a model that was added; what runs on it ends first, unless ``force=true`` ends it."""
    force = request.args.get("force", "")
    if force not in ("", "true", "false"):
        raise InvalidRequest.of("invalid_value", "force", "Must be true or false")
    return _accepted(services().model_changes.remove(principal(), model_id, force == "true"), force == "true")


@admin_bp.post("/<model_id>/load")
def load_model(model_id: str) -> tuple[Response, int]:
    """Let a worker serve a model; ``GET`` tells how far it is."""
    worker = _optional_body(LoadSchema)["worker"]
    action = services().model_changes.load(principal(), model_id, worker)
    status = services().models.show(principal(), action.model).status
    state = status if status in ("ready", "downloading", "warming") else "loading"
    return jsonify({"id": action.model, "status": state, "workers": action.workers}), 202


@admin_bp.post("/<model_id>/unload")
def unload_model(model_id: str) -> tuple[Response, int]:
    """Let workers take a model away once what runs on it has ended."""
    given = _optional_body(UnloadSchema)
    force = bool(given.get("force"))
    return _accepted(services().model_changes.unload(principal(), model_id, given["worker"], force), force)


@admin_bp.get("/<model_id>/history")
def history(model_id: str) -> Response:
    """What was changed of a model, newest first."""
    return jsonify({"changes": [_change(each) for each in services().model_changes.history(model_id)]})


def _optional_body(schema: type[StrictSchema]) -> dict[str, Any]:
    return parse_body(schema) if body.read().strip() else load(schema, {})


def _revision_seen() -> int | None:
    written = request.headers.get("If-Match", "").strip().strip('"')
    if not written:
        return None
    if not (written.isascii() and written.isdigit() and len(written) <= 18):
        raise InvalidRequest.of("invalid_value", "If-Match", "Must be a model's revision, a whole number")
    return int(written)


def _accepted(action: ModelAction, force: bool) -> tuple[Response, int]:
    state = "draining" if action.workers else "unavailable"
    answer = {
        "id": action.model,
        "status": state,
        "workers": action.workers,
        "streams": action.streams,
        "forced": force,
    }
    return jsonify(answer), 202


def _operates() -> bool:
    return services().access.has_scope(principal(), Scope.ADMIN)


def _summary(view: ModelView) -> dict[str, Any]:
    return {
        "id": view.spec.id,
        "name": view.spec.name,
        "engine": view.spec.engine,
        "status": view.status,
        "capabilities": view.capabilities,
        "maxModelLen": view.max_model_len,
        **_adapters(view),
        "origin": view.origin,
        **_workers(view),
    }


def _detailed(view: ModelView) -> dict[str, Any]:
    spec = view.spec
    detailed = {
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
        "task": spec.task,
        "aliases": spec.aliases,
        "origin": view.origin,
        "revision": view.revision,
        **_workers(view),
    }
    if _operates():
        detailed["overrides"] = dict(view.overrides)
        if view.fault:
            detailed["fault"] = view.fault
    return detailed


def _workers(view: ModelView) -> dict[str, Any]:
    """Who serves a model, or tries to: for operators, whose eyes alone may see a reason with a path in it."""
    if not _operates():
        return {}
    return {
        "workers": [
            {"name": name, **state, "since": unix_timestamp(state["since"])} for name, state in view.workers.items()
        ]
    }


def _adapters(view: ModelView) -> dict[str, Any]:
    return {} if view.adapters is None else {"loraAdapters": view.adapters}


def _change(change: ModelChange) -> dict[str, Any]:
    return {
        "revision": change.id,
        "action": change.action,
        "values": change.values,
        "by": change.changed_by,
        "at": timestamp(change.created_at),
    }

"""The inference services: one servicer behind both names."""

from collections.abc import Iterator
from typing import Any

import grpc

from engines.errors import ConfigError
from services.container import Services
from services.errors import InvalidRequest
from services.model_changes import ModelAction
from store.principal import Scope
from webapp.rpc import ai_service_pb2 as pb
from webapp.rpc.interceptor import current_call
from webapp.rpc.predict import PredictCall
from webapp.schemas.loading import json_object

#: Commands that need no operator's key.
_HARMLESS = ("ping", "list_models", "model_status")


class InferenceServicer:
    """``AiInference``, and ``AIService`` with one request a call."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._changes = services.model_changes
        self._commands = {
            "ping": self._ping,
            "list_models": self._list_models,
            "model_status": self._model_status,
            "add_model": self._add_model,
            "change_model": self._change_model,
            "reset_model": self._reset_model,
            "remove_model": self._remove_model,
            "load_model": self._load_model,
            "unload_model": self._unload_model,
            "reload_registry": self._reload_registry,
        }

    def StreamPredict(self, requests: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        """Answer requests with chunks."""
        if isinstance(requests, pb.StreamPredictRequest):
            requests = iter([requests])
        return PredictCall(self._services, context, current_call()).run(requests)

    def Control(self, request: Any, _: grpc.ServicerContext) -> Any:
        """Do what an operator asks."""
        if request.command not in _HARMLESS:
            self._services.access.require_scope(current_call().principal, Scope.ADMIN)
        command = self._commands.get(request.command)
        if command is None:
            description = f"'command' must be one of {', '.join(self._commands)}"
            raise InvalidRequest.of("invalid_value", "command", description)
        return pb.ControlMessage(trace_id=request.trace_id, command=request.command, payload=command(request.payload))

    def Health(self, _: Any, __: grpc.ServicerContext) -> Any:
        """Whether any worker serves, and what is going on."""
        report = self._services.health.report()
        metrics = {
            "workers_total": report.workers_total,
            "workers_healthy": report.workers_healthy,
            "workers_unhealthy": report.workers_total - report.workers_healthy,
            "queue_pending": report.pending_tasks,
            "running": sum(engine.running for engine in report.engines),
        }
        return pb.WorkerHealthResponse(healthy=report.up, metrics={name: str(value) for name, value in metrics.items()})

    def _ping(self, _: Any) -> dict[str, str]:
        return {"status": "ok"}

    def _list_models(self, _: Any) -> dict[str, str]:
        """Model id -> ready, loading or unavailable."""
        return self._services.models.statuses()

    def _model_status(self, payload: Any) -> dict[str, str]:
        """One model: its status, and worker -> how far it is with it."""
        caller = current_call().principal
        view = self._services.models.show(caller, payload["model"])
        workers = {}
        if self._services.access.has_scope(caller, Scope.ADMIN):
            workers = {f"worker:{name}": state["state"] for name, state in view.workers.items()}
        return {"model": view.spec.id, "status": view.status, "origin": view.origin, **workers}

    def _add_model(self, payload: Any) -> dict[str, str]:
        """Add a model: ``model``, and ``entry`` as JSON."""
        self._changes.add(current_call().principal, payload["model"], json_object(payload["entry"], "'entry'"))
        return {"model": payload["model"]}

    def _change_model(self, payload: Any) -> dict[str, str]:
        """Lay the values of ``entry`` (JSON) over a model."""
        values = json_object(payload["entry"], "'entry'")
        return {"model": self._changes.change(current_call().principal, payload["model"], values).id}

    def _reset_model(self, payload: Any) -> dict[str, str]:
        """Drop what lies over a model of the model file."""
        return {"model": self._changes.reset(current_call().principal, payload["model"])}

    def _remove_model(self, payload: Any) -> dict[str, str]:
        """Take away a model that was added."""
        return _accepted(self._changes.remove(current_call().principal, payload["model"], _flag(payload, "force")))

    def _load_model(self, payload: Any) -> dict[str, str]:
        """Let a worker serve a model."""
        return _accepted(self._changes.load(current_call().principal, payload["model"], payload["worker"]))

    def _unload_model(self, payload: Any) -> dict[str, str]:
        """Let workers take a model away; they finish what they have, unless ``force`` is ``true``."""
        caller = current_call().principal
        return _accepted(self._changes.unload(caller, payload["model"], payload["worker"], _flag(payload, "force")))

    def _reload_registry(self, _: Any) -> dict[str, str]:
        """Let every process read the model file again."""
        try:
            registry = self._services.models.reload(current_call().principal)
        except ConfigError as error:
            raise InvalidRequest.of("invalid_config", "", str(error)) from error
        return {"models": ",".join(registry.models)}


def _accepted(action: ModelAction) -> dict[str, str]:
    return {"model": action.model, "workers": ",".join(action.workers), "streams": str(action.streams)}


def _flag(payload: Any, name: str) -> bool:
    value = payload[name]
    if value not in ("", "true", "false"):
        raise InvalidRequest.of("invalid_value", f"payload.{name}", f"'{name}' must be 'true' or 'false'")
    return bool(value == "true")

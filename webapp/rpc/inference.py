"""The inference services: one servicer behind both names."""

from collections.abc import Iterator
from typing import Any

import grpc

from engines.errors import ConfigError
from services.container import Services
from services.errors import InvalidRequest
from store.sql.api_keys import Scope
from webapp.rpc import ai_service_pb2 as pb
from webapp.rpc.interceptor import current_call
from webapp.rpc.predict import PredictCall

#: Commands that need no operator's key.
_HARMLESS = ("ping", "list_models")


class InferenceServicer:
    """``AiInference``, and ``AIService`` with one request a call."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._commands = {
            "ping": self._ping,
            "list_models": self._list_models,
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

    def _unload_model(self, payload: Any) -> dict[str, str]:
        """Tell the workers to let a model go; they finish what they have, and serve it again when restarted."""
        model, workers = self._services.models.unload(payload["model"])
        return {"model": model, "workers": ",".join(workers)}

    def _reload_registry(self, _: Any) -> dict[str, str]:
        """Read the model file again, in this process."""
        try:
            registry = self._services.models.reload()
        except ConfigError as error:
            raise InvalidRequest.of("invalid_config", "", str(error)) from error
        return {"models": ",".join(registry.models)}

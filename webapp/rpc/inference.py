"""The inference services: one servicer behind both names."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
from flask import Flask

from engines.errors import ConfigError
from store import control
from store.control import Command
from store.keys import Right
from store.outcomes import Detail
from webapp import auth, errors, generation
from webapp.rpc import ai_service_pb2 as pb
from webapp.rpc.predict import Call
from webapp.services import Services
from webapp.v1 import health
from webapp.v1.models import status_of


class InferenceServicer:
    """``AiInference``, and ``AIService`` with one request a call."""

    def __init__(self, app: Flask, own: Services, reload_registry: Callable[[], Services]) -> None:
        self._app = app
        self._own = own
        self._reload_registry = reload_registry

    def StreamPredict(self, requests: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        """Answer requests with chunks."""
        if isinstance(requests, pb.StreamPredictRequest):
            requests = iter([requests])
        return Call(self._app, self._own, context, auth.principal()).run(requests)

    def Control(self, request: Any, _: grpc.ServicerContext) -> Any:
        """Do what an operator asks."""
        commands = {
            "ping": self._ping,
            "list_models": self._list_models,
            "unload_model": self._unload,
            "reload_registry": self._reload,
        }
        if not auth.principal().may(Right.ADMIN) and request.command not in ("ping", "list_models"):
            raise errors.forbidden(Right.ADMIN.value)
        command = commands.get(request.command)
        if command is None:
            description = f"'command' must be one of {', '.join(commands)}"
            raise errors.invalid([Detail("invalid_value", "command", description)])
        return pb.ControlMessage(trace_id=request.trace_id, command=request.command, payload=command(request.payload))

    def Health(self, _: Any, __: grpc.ServicerContext) -> Any:
        """Whether any worker serves, and what is going on."""
        metrics = health.summary(self._own)
        return pb.WorkerHealthResponse(healthy=metrics["workers_healthy"] != "0", metrics=metrics)

    def _ping(self, _: Any) -> dict[str, str]:
        return {"status": "ok"}

    def _list_models(self, _: Any) -> dict[str, str]:
        """Model id -> ready, loading or unavailable."""
        fleet = self._own.presence.fleet()
        return {spec.id: status_of(spec, fleet) for spec in self._own.registry.models.values()}

    def _unload(self, payload: Any) -> dict[str, str]:
        """Tell the workers to let go of a model; they finish what they have, and serve it again when restarted."""
        spec = generation.resolve(self._own, payload["model"], "payload.model")
        workers = [worker.name for worker in self._own.presence.fleet(fresh=True).serving(spec.id)]
        control.send(self._own.redis, Command.UNLOAD_MODEL, spec.id)
        return {"model": spec.id, "workers": ",".join(workers)}

    def _reload(self, _: Any) -> dict[str, str]:
        """Read the model file again, in this process."""
        try:
            self._own = self._reload_registry()
        except ConfigError as error:
            raise errors.invalid([Detail("invalid_config", "", str(error))]) from error
        return {"models": ",".join(self._own.registry.models)}

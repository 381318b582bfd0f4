"""The models of the model file: found by name, and what is really being served."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis

from engines.errors import UnknownModel
from engines.model_spec import ModelSpec
from engines.registry import Registry
from services.adapters import AdapterService
from services.errors import ModelNotFound
from store.redis import control
from store.redis.control import Command
from store.redis.presence import Fleet, PresenceReader
from store.sql.api_keys import Principal
from store.sql.tables import Adapter

#: vLLM's default, shown where the model file leaves the value open.
_DEFAULT_GPU_MEMORY_UTILIZATION = 0.92


@dataclass(frozen=True)
class NamedModel:
    """What an OpenAI client's ``model`` means."""

    spec: ModelSpec
    #: The adapter of that name, where it is one that was trained here.
    adapter: Adapter | None = None
    #: The adapter's folder, relative to the adapters root; None for a model alone.
    folder: str | None = None


@dataclass(frozen=True)
class ModelView:
    """A model as a client sees it."""

    spec: ModelSpec
    #: ``ready``, ``loading`` or ``unavailable``.
    status: str
    #: What a worker really runs with (tuning may have lowered it), else what is configured.
    max_model_len: int | None
    capabilities: tuple[str, ...]
    #: The names that a request may give as its adapter; None where the model takes none.
    adapters: list[str] | None
    gpu_memory_utilization: float


class ModelCatalog:
    """All models of one process. The model file may be read again while it runs."""

    def __init__(
        self, load: Callable[[], Registry], client: redis.Redis, presence: PresenceReader, adapters: AdapterService
    ) -> None:
        """``load`` reads the model file. Raises ``ConfigError``."""
        self._load = load
        self._redis = client
        self._presence = presence
        self._adapters = adapters
        self._registry = load()

    @property
    def registry(self) -> Registry:
        """The model file as it was read last."""
        return self._registry

    def reload(self) -> Registry:
        """Read the model file again, for every face of this process. Raises ``ConfigError``."""
        self._registry = self._load()
        return self._registry

    def resolve(self, name: str, field: str) -> ModelSpec:
        """Return the model that a client named in ``field``. Raises ``ModelNotFound``."""
        try:
            return self._registry.resolve(name)
        except UnknownModel:
            raise ModelNotFound(name, field) from None

    def resolve_name(self, principal: Principal, name: str) -> "NamedModel":
        """Return what ``name`` means as an OpenAI client's model: a model, an adapter, or a folder of one.

        Raises ``ModelNotFound``.
        """
        try:
            return NamedModel(self._registry.resolve(name))
        except UnknownModel:
            adapter = self._adapters.resolve(principal, name)
        if adapter is not None:
            return NamedModel(self.resolve(adapter.base_model, "model"), adapter, adapter.path)
        # As a request's ``adapter`` may be a path in the adapters folder, so may a model's name.
        base = self._adapters.base_of_folder(principal, name)
        spec = self._base(base) if base is not None else None
        if spec is None:
            raise ModelNotFound(name, "model")
        return NamedModel(spec, folder=name)

    def _base(self, path: str) -> ModelSpec | None:
        """Return the model that an adapter was made for, as its own configuration names it, else the only one that
        takes adapters."""
        taking = [spec for spec in self._registry.models.values() if spec.takes_adapters]
        made_for = [spec for spec in taking if path and path in (spec.id, spec.model_path, spec.location)]
        if made_for:
            return made_for[0]
        default = self._registry.default
        return default if default in taking else taking[0] if len(taking) == 1 else None

    def views(self, principal: Principal) -> list[ModelView]:
        """Return all configured models. Raises ``redis.RedisError``, ``SQLAlchemyError``."""
        fleet = self._presence.fleet()
        return [self._view(principal, spec, fleet) for spec in self._registry.models.values()]

    def show(self, principal: Principal, name: str) -> ModelView:
        """Return one model. Raises ``ModelNotFound``."""
        return self._view(principal, self.resolve(name, "modelId"), self._presence.fleet())

    def statuses(self) -> dict[str, str]:
        """Return model id -> ``ready``, ``loading`` or ``unavailable``."""
        fleet = self._presence.fleet()
        return {spec.id: _status(spec, fleet) for spec in self._registry.models.values()}

    def served(self, principal: Principal) -> tuple[list[ModelSpec], list[Adapter]]:
        """Return the models that can be asked now, and what the principal's adapter names mean on them."""
        fleet = self._presence.fleet()
        specs = [spec for spec in self._registry.models.values() if fleet.serving(spec.id)]
        return specs, self._adapters.current(principal, [spec.id for spec in specs])

    def unload(self, name: str) -> tuple[str, list[str]]:
        """Tell the workers to let a model go; return its id and the workers that serve it.

        They finish what they have, and serve it again when they are restarted. Raises ``ModelNotFound``.
        """
        spec = self.resolve(name, "payload.model")
        workers = [worker.name for worker in self._presence.fleet(fresh=True).serving(spec.id)]
        control.send(self._redis, Command.UNLOAD_MODEL, spec.id)
        return spec.id, workers

    def _view(self, principal: Principal, spec: ModelSpec, fleet: Fleet) -> ModelView:
        engine: dict[str, Any] | None = fleet.engine_info(spec.id)
        adapters = None
        if spec.takes_adapters:
            adapters = sorted(adapter.name for adapter in self._adapters.current(principal, [spec.id]))
        return ModelView(
            spec=spec,
            status=_status(spec, fleet),
            max_model_len=engine["max_model_len"] if engine else spec.max_model_len,
            capabilities=_capabilities(spec),
            adapters=adapters,
            gpu_memory_utilization=spec.gpu_memory_utilization or _DEFAULT_GPU_MEMORY_UTILIZATION,
        )


def _capabilities(spec: ModelSpec) -> tuple[str, ...]:
    if not spec.generates:
        return (spec.task,)
    return ("inference", "stream", "training") if spec.takes_adapters else ("inference", "stream")


def _status(spec: ModelSpec, fleet: Fleet) -> str:
    if fleet.serving(spec.id):
        return "ready"
    return "loading" if fleet.loading(spec.id) else "unavailable"

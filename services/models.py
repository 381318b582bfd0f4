"""The models: found by name, and what is really being served."""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import redis
from sqlalchemy.exc import SQLAlchemyError

from engines.catalogue import Catalogue, Origin, fingerprint
from engines.errors import ConfigError, UnknownModel
from engines.model_spec import ModelSpec
from engines.registry import Registry
from services.access import Access
from services.adapters import AdapterService
from services.errors import ModelNotFound
from store import model_revision
from store.principal import Principal
from store.redis.presence import Fleet, ModelStatus, PresenceReader
from store.sql.adapters import reference
from store.sql.models import ModelState, ModelStore
from store.sql.tables import Adapter

log = logging.getLogger(__name__)

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

    @property
    def keeps_its_name(self) -> bool:
        """Whether the name says all; a bare adapter's name does not say which version it means now."""
        return self.folder is None or (self.adapter is not None and bool(self.adapter.model_name))


@dataclass(frozen=True)
class ModelView:
    """A model as a client sees it."""

    spec: ModelSpec
    #: ``ready``, ``downloading``, ``loading``, ``warming``, ``asleep`` and ``unloaded`` (the next request brings it),
    #: ``draining``, ``failed`` or ``unavailable``.
    status: str
    #: What a worker really runs with (tuning may have lowered it), else what is configured.
    max_model_len: int | None
    capabilities: tuple[str, ...]
    #: The names that a request may give as its adapter; None where the model takes none.
    adapters: list[str] | None
    gpu_memory_utilization: float
    #: ``file`` or ``api``.
    origin: str
    #: What lies over the model file's entry.
    overrides: Mapping[str, Any]
    #: Why what was written of the model is not in force; '' where all is.
    fault: str
    #: The last change of its entry; 0 where there was none.
    revision: int
    #: Worker -> ``state``, ``since``, ``reason``, ``progress``, and ``outdated`` where it runs with an older entry.
    workers: Mapping[str, dict[str, Any]]


class ModelCatalog:
    """All models of one process: the model file, and what operators changed since."""

    def __init__(
        self,
        load: Callable[[], Registry],
        merge: Callable[[Registry, ModelState], Catalogue],
        store: ModelStore,
        client: redis.Redis,
        presence: PresenceReader,
        adapters: AdapterService,
    ) -> None:
        """``load`` reads the model file, ``merge`` lays over it what the database holds. Raises ``ConfigError``."""
        self._load = load
        self._merge = merge
        self._store = store
        self._redis = client
        self._presence = presence
        self._adapters = adapters
        self._file = load()
        self._state = ModelState()
        self._lock = threading.Lock()
        try:
            self._state = store.state()
        except SQLAlchemyError as error:
            log.warning("What operators changed of the models cannot be read: %s", error.__class__.__name__)
        self._catalogue = merge(self._file, self._state)
        for fault in self._catalogue.faults.values():
            log.error("%s", fault)

    @property
    def registry(self) -> Registry:
        """The models as they are now."""
        return self._catalogue.registry

    @property
    def file(self) -> Registry:
        """The model file alone."""
        return self._file

    def snapshot(self) -> tuple[Catalogue, ModelState]:
        """Return the models and what the database held when they were made of it."""
        with self._lock:
            return self._catalogue, self._state

    def is_unloaded(self, model: str) -> bool:
        """Whether operators took a model away wherever they said something of it."""
        if model not in self.registry.models:
            return True
        placed = [row.loaded for row in self._state.placements if row.model == model]
        return bool(placed) and not any(placed)

    @property
    def catalogue(self) -> Catalogue:
        """The models, and where each is from."""
        return self._catalogue

    @property
    def state(self) -> ModelState:
        """What the database held when it was read last."""
        return self._state

    def refresh(self) -> int:
        """Take in what operators changed; return its revision. Raises ``SQLAlchemyError``."""
        with self._lock:
            state = self._store.state()
            if state.reloaded != self._state.reloaded:
                try:
                    self._file = self._load()
                except ConfigError as error:
                    log.error("The model file cannot be used, it stays as it was: %s", error)
            self._catalogue = self._merge(self._file, state)
            self._state = state
            return state.revision

    def reload(self, principal: Principal) -> Registry:
        """Let every process read the model file again. Raises ``ConfigError``, and nothing is changed then."""
        self.refresh()
        catalogue = self._merge(self._load(), self._state)
        for model, fault in catalogue.faults.items():
            if model not in self._catalogue.faults:
                raise ConfigError(fault)
        self.announce(self._store.note_reload(principal.id))
        return self.registry

    def announce(self, revision: int) -> None:
        """A change was written: take it in, and tell the other processes."""
        self.refresh()
        try:
            model_revision.publish(self._redis, revision)
        except (redis.RedisError, OSError) as error:
            # They ask the database by themselves now and then.
            log.warning("The other processes cannot be told of a change now: %s", error.__class__.__name__)

    def resolve(self, name: str, field: str) -> ModelSpec:
        """Return the model that a client named in ``field``. Raises ``ModelNotFound``."""
        try:
            return self.registry.resolve(name)
        except UnknownModel:
            raise ModelNotFound(name, field) from None

    def resolve_name(self, principal: Principal, name: str) -> "NamedModel":
        """Return what ``name`` means as an OpenAI client's model: a model, an adapter, or a folder of one.

        Raises ``ModelNotFound``.
        """
        try:
            return NamedModel(self.registry.resolve(name))
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
        taking = [spec for spec in self.registry.models.values() if spec.takes_adapters]
        made_for = [spec for spec in taking if path and path in (spec.id, spec.model_path, spec.location)]
        if made_for:
            return made_for[0]
        default = self.registry.default
        return default if default in taking else taking[0] if len(taking) == 1 else None

    def views(self, principal: Principal) -> list[ModelView]:
        """Return all configured models. Raises ``redis.RedisError``, ``SQLAlchemyError``."""
        fleet = self._presence.fleet()
        views = [self._view(principal, spec, fleet) for spec in self.registry.models.values()]
        # One whose adapters alone the key may use is there for them.
        return [view for view in views if Access.may_use(principal, (view.spec.id, *(view.adapters or ())))]

    def show(self, principal: Principal, name: str) -> ModelView:
        """Return one model. Raises ``ModelNotFound``, ``ModelNotAllowed``."""
        view = self._view(principal, self.resolve(name, "modelId"), self._presence.fleet())
        Access.require_model(principal, name, (view.spec.id, *(view.adapters or ())), "modelId")
        return view

    def context_length(self, model: str) -> int | None:
        """Return how many tokens a model's context has: what a worker runs with, else what is configured, if known."""
        spec = self.registry.models.get(model)
        try:
            info = self._presence.fleet().engine_info(model)
        except (redis.RedisError, OSError):
            info = None
        length = info.get("max_model_len") if info else None
        return length or (spec.max_model_len if spec is not None else None)

    def fleet(self) -> Fleet:
        """Return the workers as they are now. Raises ``redis.RedisError``."""
        return self._presence.fleet()

    def statuses(self) -> dict[str, str]:
        """Return model id -> its status (``ModelView.status``)."""
        fleet = self._presence.fleet()
        return {spec.id: _status(spec, fleet) for spec in self.registry.models.values()}

    def served(self, principal: Principal) -> tuple[list[ModelSpec], list[Adapter]]:
        """Return the models that can be asked now, and what the principal's adapter names mean on them."""
        fleet = self._presence.fleet()
        specs = [spec for spec in self.registry.models.values() if fleet.askable(spec.id)]
        adapters = self._adapters.current(principal, [spec.id for spec in specs])
        return (
            [spec for spec in specs if Access.may_use(principal, (spec.id,))],
            [each for each in adapters if Access.may_use(principal, (each.base_model, each.name, reference(each)))],
        )

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
            origin=self._catalogue.origins.get(spec.id, Origin.FILE),
            overrides=self._catalogue.overrides.get(spec.id, {}),
            fault=self._catalogue.faults.get(spec.id, ""),
            revision=self._state.revision_of(spec.id),
            workers={worker.name: _worker_state(state, spec) for worker, state in fleet.states(spec.id)},
        )


def _worker_state(state: dict[str, Any], spec: ModelSpec) -> dict[str, Any]:
    """What a worker says of a model, with whether it runs with the entry as it is now."""
    outdated = state.get("fingerprint", "") != fingerprint(spec)
    shown = {name: value for name, value in state.items() if name != "fingerprint"}
    return {**shown, "outdated": True} if outdated else shown


def _capabilities(spec: ModelSpec) -> tuple[str, ...]:
    if not spec.generates:
        return (spec.task,)
    return ("inference", "stream", "training") if spec.takes_adapters else ("inference", "stream")


def _status(spec: ModelSpec, fleet: Fleet) -> str:
    """The best of what the workers say: whether the model can be asked, or will be soon."""
    if fleet.serving(spec.id):
        return ModelStatus.READY
    states = {state["state"] for _, state in fleet.states(spec.id)}
    waiting = (ModelStatus.ASLEEP, ModelStatus.UNLOADED, ModelStatus.DRAINING, ModelStatus.FAILED)
    for state in (*reversed(ModelStatus.COMING), *waiting):
        if state in states:
            return state
    return ModelStatus.LOADING if fleet.loading(spec.id) else "unavailable"

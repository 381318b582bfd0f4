"""What operators do to the models while the service runs: the one place that decides what may be done."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import redis

from engines.catalogue import Origin, overlay
from engines.model_entry import snake_keys
from engines.model_spec import ModelSpec
from services.errors import Conflict, InvalidRequest, ModelNotFound, Unavailable
from services.model_checks import ModelChecks
from services.models import ModelCatalog
from settings import Settings
from store.principal import Principal
from store.redis import control
from store.redis.control import Command
from store.redis.presence import ModelStatus, PresenceReader, WorkerInfo
from store.sql.adapters import AdapterStore, reference
from store.sql.jobs import JobStatus, JobStore
from store.sql.models import ENTRY, OVERRIDE, ChangedMeanwhileError, ModelExistsError, ModelStore
from store.sql.tables import ModelChange
from store.token_log.outcomes import Detail

_OPEN_STATES = (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.PAUSED)
#: How many changes the history shows.
_HISTORY = 100
#: How often a change is made anew that somebody else was faster with.
_TRIES = 4


@dataclass(frozen=True)
class ModelAction:
    """What was asked of workers for one model."""

    model: str
    workers: list[str]
    #: Answers that run on it now; with ``force`` they are ended.
    streams: int = 0


class ModelChanges:
    """The changes. Errors are ``ServiceError``, and those of the stores."""

    def __init__(
        self,
        settings: Settings,
        models: ModelCatalog,
        store: ModelStore,
        client: redis.Redis,
        presence: PresenceReader,
        adapters: AdapterStore,
        jobs: JobStore,
    ) -> None:
        self._checks = ModelChecks(settings, models)
        self._models = models
        self._store = store
        self._redis = client
        self._presence = presence
        self._adapters = adapters
        self._jobs = jobs

    def add(self, principal: Principal, model: str, entry: Mapping[str, Any]) -> ModelSpec:
        """Add a model that the model file does not have. Raises ``InvalidRequest``, ``Conflict``."""
        self._models.refresh()
        registry = self._models.registry
        if model in registry.models or model in registry.aliases or model in self._models.catalogue.faults:
            raise _exists(model)
        written = overlay(self._checks.written(model, entry), {})
        spec = self._checks.parsed(model, written)
        self._require_no_adapter(model, *spec.aliases)
        try:
            self._models.announce(self._store.add(model, written, principal.id))
        except ModelExistsError:
            raise _exists(model) from None
        return spec

    def change(self, principal: Principal, name: str, values: Mapping[str, Any], seen: int | None = None) -> ModelSpec:
        """Lay values over a model's entry; None takes a key out. ``seen`` is the revision that the caller looked at."""
        for _ in range(_TRIES - 1):
            try:
                return self._change(principal, name, values, seen)
            except ChangedMeanwhileError:
                # Both changes count, where the caller did not say what it had looked at.
                if seen is not None:
                    break
        try:
            return self._change(principal, name, values, seen)
        except ChangedMeanwhileError:
            description = f"Model '{name}' was changed by somebody else meanwhile; look at it again"
            raise Conflict("changed_meanwhile", "revision", description) from None

    def _change(self, principal: Principal, name: str, values: Mapping[str, Any], seen: int | None) -> ModelSpec:
        """As :meth:`change`. Raises ``ChangedMeanwhileError``."""
        self._models.refresh()
        model = self._existing(name).id
        given = self._checks.written(model, values)
        catalogue, state = self._models.snapshot()
        if model not in catalogue.origins:
            raise ModelNotFound(name, "id")
        if catalogue.origins[model] == Origin.API:
            kind, entry = ENTRY, overlay(state.added[model], given)
            whole = entry
        else:
            # A None stays: it takes out what the model file says.
            kind, entry = OVERRIDE, {**state.overrides.get(model, {}), **given}
            whole = overlay(snake_keys(model, catalogue.registry.entries[model]), entry)
        spec = self._checks.parsed(model, whole)
        self._require_no_adapter(*spec.aliases)
        looked_at = state.revision_of(model) if seen is None else seen
        self._models.announce(self._store.put(model, kind, entry, given, principal.id, looked_at))
        return spec

    def reset(self, principal: Principal, name: str) -> str:
        """Drop what lies over the model file's entry; return the model's id."""
        self._models.refresh()
        # Also of a model that the file does not have any more.
        model = name if name in self._models.state.overrides else self._existing(name).id
        if self._models.catalogue.origins.get(model) == Origin.API:
            description = f"Model '{model}' was added here and has no entry in the model file to go back to"
            raise Conflict("not_in_file", "id", description)
        self._models.announce(self._store.remove(model, "reset", principal.id))
        return model

    def remove(self, principal: Principal, name: str, force: bool = False) -> ModelAction:
        """Take a model away that was added here; what runs on it ends first, unless ``force`` ends it."""
        self._models.refresh()
        model = name if name in self._models.state.added else self._existing(name).id
        if model not in self._models.state.added:
            description = f"Model '{model}' stands in the model file; take it out there, or unload it"
            raise Conflict("in_model_file", "id", description)
        if not force:
            self._require_unneeded(model)
        workers, streams = self._holding(model)
        self._models.announce(self._store.remove(model, "remove", principal.id))
        if force:
            control.send(self._redis, Command.STOP_MODEL, model)
        return ModelAction(model, [worker.name for worker in workers], streams)

    def require_worker(self, worker: str) -> None:
        """Raise where :meth:`load` could not tell any worker."""
        self._choose("", worker)

    def load(self, principal: Principal, name: str, worker: str = "") -> ModelAction:
        """Let a worker serve a model: the one that is named, else one that does already, else the least busy one."""
        self._models.refresh()
        spec = self._existing(name)
        names = [each.name for each in self._choose(spec.id, worker)]
        self._models.announce(self._store.place(spec.id, names, True, principal.id))
        return ModelAction(spec.id, names)

    def _choose(self, model: str, worker: str) -> list[WorkerInfo]:
        """Return the workers that shall load a model. Raises ``InvalidRequest``, ``Unavailable``."""
        living = self._inference_workers()
        if worker:
            chosen = [self._named(worker, living)]
        else:
            having = [each for each in living if _has(each, model)]
            chosen = having or sorted(living, key=lambda each: (len(each.models), each.in_flight, each.name))[:1]
        if not chosen:
            description = "No inference worker is running that could load it; start one (celery … -Q gpu-infer)"
            raise Unavailable("No worker is running", [Detail("no_worker", "worker", description)], 5)
        return chosen

    def unload(self, principal: Principal, name: str, worker: str = "", force: bool = False) -> ModelAction:
        """Let workers take a model away once what runs on it has ended; ``force`` ends it at once."""
        self._models.refresh()
        spec = self._existing(name)
        if worker:
            self._named(worker, self._inference_workers())
        holding, streams = self._holding(spec.id, worker)
        placed = {row.worker for row in self._models.state.placements if row.model == spec.id and row.loaded}
        names = sorted({each.name for each in holding} | ({worker} if worker else placed))
        self._models.announce(self._store.place(spec.id, names, False, principal.id))
        if not worker and any(not each.model_states for each in holding):
            # A worker of an older version reads no placements.
            control.send(self._redis, Command.UNLOAD_MODEL, spec.id)
        if force:
            control.send(self._redis, Command.STOP_MODEL, spec.id, worker=worker)
        return ModelAction(spec.id, [each.name for each in holding], streams)

    def history(self, name: str) -> list[ModelChange]:
        """Return what was changed of a model, newest first; also of one that is gone."""
        return self._store.history(self._models.registry.aliases.get(name, name), _HISTORY)

    def _existing(self, name: str) -> ModelSpec:
        return self._models.resolve(name, "id")

    def _require_no_adapter(self, *names: str) -> None:
        """Raise ``Conflict`` for a name that an adapter has: OpenAI clients name both in one field."""
        taken = {adapter.name for adapter in self._adapters.all()}
        for name in names:
            if name in taken:
                description = f"'{name}' is the name of an adapter; give the model another one"
                raise Conflict("name_taken", "id", description)

    def _require_unneeded(self, model: str) -> None:
        """Raise ``Conflict`` while a training, or an adapter, needs the model."""
        needing = [f"adapter {reference(adapter)}" for adapter in self._adapters.all(model)]
        for job in self._jobs.page(None, _OPEN_STATES, 100, 0)[0]:
            if job.options.get("model") == model or job.base_model == model:
                needing.append(f"training {job.id}")
        if needing:
            shown = ", ".join(needing[:5]) + (f" and {len(needing) - 5} more" if len(needing) > 5 else "")
            description = f"Model '{model}' is needed by {shown}; delete or end them first, or say force"
            raise Conflict("model_in_use", "id", description)

    def _inference_workers(self) -> list[WorkerInfo]:
        """Only inference workers announce themselves."""
        return [worker for worker in self._presence.fleet(fresh=True).living if worker.ready]

    def _named(self, name: str, living: list[WorkerInfo]) -> WorkerInfo:
        for worker in living:
            if worker.name == name:
                return worker
        known = ", ".join(worker.name for worker in living) or "none"
        raise InvalidRequest.of("unknown_worker", "worker", f"No inference worker '{name}' is ready; ready: {known}")

    def _holding(self, model: str, worker: str = "") -> tuple[list[WorkerInfo], int]:
        """Return the workers that have to do with a model, and how many answers run on it there."""
        living = self._presence.fleet(fresh=True).living
        holding = [each for each in living if _has(each, model) and worker in ("", each.name)]
        return holding, sum(each.models.get(model, {}).get("running", 0) for each in holding)


def _has(worker: WorkerInfo, model: str) -> bool:
    state = worker.model_states.get(model, {}).get("state")
    return model in worker.models or state not in (None, ModelStatus.FAILED)


def _exists(model: str) -> Conflict:
    return Conflict("model_exists", "id", f"There is a model or an alias '{model}' already")

"""Which models this worker shall serve: what it was started for, and what operators said since."""

import logging
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from engines.catalogue import Catalogue, merge
from engines.errors import ConfigError
from engines.registry import Registry, load_registry
from settings import Settings
from store.sql.models import ModelState, ModelStore
from tasks.worker.models.hosted import DesiredModel

log = logging.getLogger(__name__)


class ModelAssignment:
    """The part of the catalogue that is this worker's."""

    def __init__(self, settings: Settings, sessions: sessionmaker[Session], worker_name: str) -> None:
        self._settings = settings
        self._store = ModelStore(sessions)
        self._worker_name = worker_name
        self._started_for: list[str] = []
        self._reloaded = 0
        self._file = self._read_file()

    def begin(self, names: Sequence[str] | None) -> tuple[list[str], dict[str, DesiredModel]]:
        """Return the models that the worker is started for (None: the default), and those of them that it shall load
        now. Raises ``ConfigError``, ``UnknownModel``; with the database away, the model file alone counts."""
        try:
            state = self._store.state()
        except SQLAlchemyError as error:
            log.warning("What operators changed of the models cannot be read: %s", error.__class__.__name__)
            state = ModelState()
        self._reloaded = state.reloaded
        catalogue = self._catalogue(state)
        registry = catalogue.registry
        specs = [registry.default] if names is None else [registry.resolve(name) for name in names]
        self._started_for = [spec.id for spec in specs]
        desired = self._desired(catalogue, state)
        return self._started_for, {model: desired[model] for model in self._started_for if model in desired}

    def now(self) -> tuple[dict[str, DesiredModel], int]:
        """Return what the worker shall serve now, and the revision. Raises ``SQLAlchemyError``."""
        state = self._store.state()
        if state.reloaded != self._reloaded:
            try:
                self._file = self._read_file()
            except ConfigError as error:
                log.error("The model file cannot be used, it stays as it was: %s", error)
            self._reloaded = state.reloaded
        return self._desired(self._catalogue(state), state), state.revision

    def _read_file(self) -> Registry:
        return load_registry(self._settings.config_path, **self._settings.registry_options)

    def _catalogue(self, state: ModelState) -> Catalogue:
        settings = self._settings
        base = Path(settings.config_path).parent
        return merge(self._file, state.added, state.overrides, base, settings.models_root, settings.engine)

    def _desired(self, catalogue: Catalogue, state: ModelState) -> dict[str, DesiredModel]:
        placed = {row.model: row for row in state.placements if row.worker == self._worker_name}
        found = {}
        for model in dict.fromkeys([*self._started_for, *placed]):
            row = placed.get(model)
            if model not in catalogue.registry.models or (row is not None and not row.loaded):
                continue
            found[model] = DesiredModel(catalogue.registry.models[model], row.revision if row is not None else 0)
        return found

"""What operators changed of the models while the service runs, where each shall be served, and the history of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from store.errors import StoreError
from store.sql.tables import ModelChange, ModelPlacement, StoredModel, now

#: Kinds of ``StoredModel``.
ENTRY = "entry"
OVERRIDE = "override"
#: The action that lets every process read the model file again.
RELOAD = "reload"
#: Number of the lock that writers take in PostgreSQL.
_WRITERS = 0x63796D6F64656C


class ChangedMeanwhileError(StoreError):
    """Somebody else changed the model since the caller looked."""


class ModelExistsError(StoreError):
    """A model of that id was added before."""


@dataclass(frozen=True)
class Placement:
    """Whether one worker shall serve one model. ``revision`` is the change that said so."""

    model: str
    worker: str
    loaded: bool
    revision: int


@dataclass(frozen=True)
class ModelState:
    """All of it at one moment."""

    revision: int = 0
    #: Model id -> its entry, or the values that lie over the model file's.
    entries: tuple[StoredModel, ...] = ()
    placements: tuple[Placement, ...] = ()
    #: The change with which an operator last asked for the model file to be read again; 0 for none.
    reloaded: int = 0

    @property
    def added(self) -> dict[str, dict[str, Any]]:
        """Model id -> entry, of the models that the file does not have."""
        return {row.id: row.entry for row in self.entries if row.kind == ENTRY}

    @property
    def overrides(self) -> dict[str, dict[str, Any]]:
        """Model id -> the values that lie over the model file's."""
        return {row.id: row.entry for row in self.entries if row.kind == OVERRIDE}

    def revision_of(self, model: str) -> int:
        """Return the change that wrote a model's entry last; 0 where nobody did."""
        return next((row.revision for row in self.entries if row.id == model), 0)


class ModelStore:
    """All reads and writes. ``by`` is the id of the key; writes return the revision that they made."""

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self._sessions = sessions

    def revision(self) -> int:
        """Return the number of the last change; 0 before the first."""
        with self._sessions() as session:
            return session.scalar(select(func.max(ModelChange.id))) or 0

    def state(self) -> ModelState:
        with self._sessions() as session:
            revision = session.scalar(select(func.max(ModelChange.id))) or 0
            entries = tuple(session.scalars(select(StoredModel).order_by(StoredModel.id)))
            rows = session.scalars(select(ModelPlacement).order_by(ModelPlacement.model, ModelPlacement.worker))
            placements = tuple(Placement(row.model, row.worker, row.loaded, row.revision) for row in rows)
            reloaded = session.scalar(select(func.max(ModelChange.id)).where(ModelChange.action == RELOAD)) or 0
            return ModelState(revision, entries, placements, reloaded)

    def history(self, model: str, limit: int) -> list[ModelChange]:
        """Return the changes of one model, newest first."""
        with self._sessions() as session:
            wanted = select(ModelChange).where(ModelChange.model == model)
            return list(session.scalars(wanted.order_by(ModelChange.id.desc()).limit(limit)))

    def add(self, model: str, entry: dict[str, Any], by: str) -> int:
        """Write an entry of its own. Raises ``ModelExistsError``."""

        def write(session: Session, revision: int) -> None:
            session.add(StoredModel(id=model, kind=ENTRY, entry=entry, revision=revision))

        try:
            return self._change(model, "add", entry, by, write)
        except IntegrityError:
            raise ModelExistsError(model) from None

    def put(
        self, model: str, kind: str, entry: dict[str, Any], given: dict[str, Any], by: str, seen: int | None = None
    ) -> int:
        """Write an entry, or values over one; ``given`` is what the caller named, for the history.

        ``seen`` is the revision that the caller looked at. Raises ``ChangedMeanwhileError``.
        """

        def write(session: Session, revision: int) -> None:
            row = session.get(StoredModel, model, with_for_update=True)
            if seen is not None and seen != (row.revision if row is not None else 0):
                raise ChangedMeanwhileError(model)
            if row is None:
                session.add(StoredModel(id=model, kind=kind, entry=entry, revision=revision))
            else:
                row.kind, row.entry, row.revision, row.updated_at = kind, entry, revision, now()

        try:
            return self._change(model, "change", given, by, write)
        except IntegrityError:
            raise ChangedMeanwhileError(model) from None

    def remove(self, model: str, action: str, by: str) -> int:
        """Drop an entry (``remove``, its placements too) or what lies over the model file's (``reset``)."""

        def write(session: Session, _: int) -> None:
            session.execute(delete(StoredModel).where(StoredModel.id == model))
            if action == "remove":
                session.execute(delete(ModelPlacement).where(ModelPlacement.model == model))

        return self._change(model, action, {}, by, write)

    def place(self, model: str, workers: list[str], loaded: bool, by: str) -> int:
        """Write whether workers shall serve a model."""

        def write(session: Session, revision: int) -> None:
            for worker in workers:
                row = session.get(ModelPlacement, (model, worker))
                if row is None:
                    session.add(ModelPlacement(model=model, worker=worker, loaded=loaded, revision=revision))
                else:
                    row.loaded, row.revision = loaded, revision

        return self._change(model, "load" if loaded else "unload", {"workers": workers}, by, write)

    def note_reload(self, by: str) -> int:
        """Write that the model file shall be read again."""
        return self._change("", RELOAD, {}, by, lambda session, revision: None)

    def _change(
        self, model: str, action: str, values: dict[str, Any], by: str, write: Callable[[Session, int], None]
    ) -> int:
        with self._sessions.begin() as session:
            if session.get_bind().dialect.name == "postgresql":
                # One writer at a time, as in SQLite: what is numbered first is also seen first.
                session.execute(select(func.pg_advisory_xact_lock(_WRITERS)))
            change = ModelChange(model=model, action=action, values=values, changed_by=by)
            session.add(change)
            session.flush()
            write(session, change.id)
            return change.id

"""Adapters by name and version. A version's folder never changes; a name points to one version."""

import logging
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.sql.elements import ColumnElement

from store.models import Adapter, AdapterAlias, now

log = logging.getLogger(__name__)

#: ``name`` or ``name@version``.
_REFERENCE = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,63})(?:@(?P<version>[1-9][0-9]{0,8}))?\Z")
_DRAFTS = ".drafts"


@dataclass(frozen=True)
class Draft:
    """A copy of an adapter's files that has no name yet."""

    folder: Path
    rank: int
    checksum: str


def valid_name(name: str) -> bool:
    """Whether an adapter may be called that: letters, digits, '.', '_', '-'; at most 64."""
    match = _REFERENCE.match(name)
    return match is not None and match["version"] is None


def reference(adapter: Adapter) -> str:
    """``name@version``."""
    return f"{adapter.name}@{adapter.version}"


class AdapterStore:
    """All reads and writes of adapters. ``root`` is the adapters folder that every host sees."""

    def __init__(self, sessions: sessionmaker[Session], root: Path) -> None:
        self._sessions = sessions
        self.root = root

    def draft(self, folder: Path, files: Sequence[str], rank: int, checksum: str) -> Draft:
        """Copy an adapter's files beside the others, where nobody sees them yet."""
        target = self.root / _DRAFTS / secrets.token_hex(8)
        target.mkdir(parents=True)
        for name in files:
            shutil.copyfile(folder / name, target / name)
            with (target / name).open("rb") as file:
                os.fsync(file.fileno())
            (target / name).chmod(0o444)
        return Draft(target, rank, checksum)

    def discard(self, draft: Draft) -> None:
        shutil.rmtree(draft.folder, ignore_errors=True)

    def add(
        self, session: Session, draft: Draft, name: str, base_model: str, job_id: str, metrics: dict[str, float]
    ) -> Adapter:
        """Give a draft the name's next version, in the caller's transaction.

        The folder is moved first: where two jobs finish at once, the file system decides who
        gets which version.
        """
        known = session.scalar(select(func.max(Adapter.version)).where(Adapter.name == name)) or 0
        (self.root / name).mkdir(exist_ok=True)
        version = known + 1
        while not _move(draft.folder, self.root / name / str(version)):
            version += 1
        adapter = Adapter(
            name=name,
            version=version,
            base_model=base_model,
            path=f"{name}/{version}",
            rank=draft.rank,
            checksum=draft.checksum,
            job_id=job_id,
            metrics=metrics,
        )
        session.add(adapter)
        session.flush()
        return adapter

    def point(self, session: Session, name: str, version: int) -> None:
        """Let the bare name mean ``version``, in the caller's transaction."""
        alias = session.get(AdapterAlias, name)
        if alias is None:
            session.add(AdapterAlias(name=name, version=version, previous=0))
        elif alias.version != version:
            alias.previous, alias.version, alias.updated_at = alias.version, version, now()

    def promote(self, name: str, version: int) -> bool:
        """As :meth:`point`. False when there is no such version."""
        with self._sessions.begin() as session:
            if _find(session, name, version) is None:
                return False
            self.point(session, name, version)
            return True

    def rollback(self, name: str) -> int | None:
        """Let the name mean what it meant before; return that version. None when there is none, or it was deleted."""
        with self._sessions.begin() as session:
            alias = session.get(AdapterAlias, name)
            if alias is None or not alias.previous or _find(session, name, alias.previous) is None:
                return None
            self.point(session, name, alias.previous)
            return alias.version

    def resolve(self, text: str) -> Adapter | None:
        """Return the adapter that ``name`` or ``name@version`` means; None where there is none."""
        match = _REFERENCE.match(text)
        if match is None:
            return None
        with self._sessions() as session:
            version = int(match["version"] or 0)
            if not version:
                alias = session.get(AdapterAlias, match["name"])
                version = alias.version if alias is not None else 0
            return _find(session, match["name"], version)

    def all(self, base_model: str | None = None) -> list[Adapter]:
        """Return every version that is not deleted, by name, newest first."""
        wanted: list[ColumnElement[bool]] = [Adapter.deleted_at.is_(None)]
        if base_model is not None:
            wanted.append(Adapter.base_model == base_model)
        with self._sessions() as session:
            order = (Adapter.name, Adapter.version.desc())
            return list(session.scalars(select(Adapter).where(*wanted).order_by(*order)))

    def aliases(self) -> dict[str, int]:
        """Return name -> the version that it means."""
        with self._sessions() as session:
            return {alias.name: alias.version for alias in session.scalars(select(AdapterAlias))}

    def current(self, base_models: Sequence[str]) -> list[Adapter]:
        """Return what bare names mean for these models, newest first: what a worker loads when it starts."""
        meant = self.aliases()
        found = [adapter for model in base_models for adapter in self.all(model)]
        found = [adapter for adapter in found if meant.get(adapter.name) == adapter.version]
        return sorted(found, key=lambda adapter: adapter.created_at, reverse=True)

    def delete(self, name: str, version: int | None) -> list[Adapter]:
        """Hide one version, or all of a name; return what was hidden. Folders stay until :meth:`sweep`."""
        with self._sessions.begin() as session:
            wanted = [Adapter.name == name, Adapter.deleted_at.is_(None)]
            if version is not None:
                wanted.append(Adapter.version == version)
            at = now()
            session.execute(
                update(Adapter).where(*wanted).values(deleted_at=at).execution_options(synchronize_session=False)
            )
            hidden = list(session.scalars(select(Adapter).where(Adapter.name == name, Adapter.deleted_at == at)))
            left = session.scalar(
                select(func.max(Adapter.version)).where(Adapter.name == name, Adapter.deleted_at.is_(None))
            )
            alias = session.get(AdapterAlias, name)
            if alias is not None and left is None:
                session.delete(alias)
            elif alias is not None and alias.version in [adapter.version for adapter in hidden]:
                alias.version, alias.previous = left or 0, 0
            return hidden

    def sweep(self, older_than: float) -> list[str]:
        """Remove the folders of versions that were deleted ``older_than`` seconds ago; return their references."""
        limit = now() - timedelta(seconds=older_than)
        with self._sessions() as session:
            gone = list(session.scalars(select(Adapter).where(Adapter.deleted_at < limit)))
        swept = [adapter for adapter in gone if (self.root / adapter.path).exists()]
        for adapter in swept:
            shutil.rmtree(self.root / adapter.path, ignore_errors=True)
        return [reference(adapter) for adapter in swept]


def _find(session: Session, name: str, version: int) -> Adapter | None:
    return session.scalar(
        select(Adapter).where(Adapter.name == name, Adapter.version == version, Adapter.deleted_at.is_(None))
    )


def _move(source: Path, target: Path) -> bool:
    try:
        source.rename(target)
    except OSError:
        if target.exists():
            return False
        raise
    return True

"""Adapters by name and version. A version's folder never changes; a name points to one version."""

import contextlib
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.sql.elements import ColumnElement

from store.sql.tables import Adapter, AdapterAlias, now
from store.tenant import DEFAULT_TENANT

log = logging.getLogger(__name__)

#: ``name`` or ``name@version``.
_REFERENCE = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,63})(?:@(?P<version>[1-9][0-9]{0,8}))?\Z")
#: The highest version that a reference can name.
MAX_VERSION = 999_999_999
_STAGING = ".drafts"
#: A copy that was begun so long ago is nobody's. Seconds.
_ABANDONED_SECONDS = 86_400.0
#: How the names of fine-tuned models begin that OpenAI's clients use.
FINE_TUNED = "ft:"


@dataclass(frozen=True)
class StagedAdapter:
    """A copy of an adapter's files that has no version yet."""

    folder: Path
    rank: int
    checksum: str


def valid_name(name: str) -> bool:
    """Whether an adapter may be called that: letters, digits, '.', '_', '-'; at most 64."""
    match = _REFERENCE.match(name)
    return match is not None and match["version"] is None


def parse_reference(text: str) -> tuple[str, int | None] | None:
    """Take ``name`` or ``name@version`` apart; None for anything else."""
    match = _REFERENCE.match(text)
    if match is None:
        return None
    return match["name"], int(match["version"]) if match["version"] else None


def reference(adapter: Adapter) -> str:
    """``name@version``."""
    return f"{adapter.name}@{adapter.version}"


class AdapterStore:
    """All reads and writes of adapters. ``root`` is the adapters folder that every host sees."""

    def __init__(self, sessions: sessionmaker[Session], root: Path) -> None:
        self._sessions = sessions
        self.root = root

    def stage(self, folder: Path, files: Sequence[str], rank: int, checksum: str) -> StagedAdapter:
        """Copy an adapter's files beside the others, where nobody sees them yet."""
        target = self.root / _STAGING / secrets.token_hex(8)
        target.mkdir(parents=True)
        try:
            for name in files:
                shutil.copyfile(folder / name, target / name)
                with (target / name).open("rb") as file:
                    os.fsync(file.fileno())
                (target / name).chmod(0o444)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise
        return StagedAdapter(target, rank, checksum)

    def discard(self, staged: StagedAdapter) -> None:
        shutil.rmtree(staged.folder, ignore_errors=True)

    def add(
        self,
        session: Session,
        staged: StagedAdapter,
        name: str,
        base_model: str,
        job_id: str,
        metrics: dict[str, float],
        tenant: str = DEFAULT_TENANT,
        model_name: str = "",
        step: int = 0,
    ) -> Adapter:
        """Give a staged adapter the name's next version, in the caller's transaction.

        The folder is moved first: where two jobs finish at once, the file system decides who
        gets which version.
        """
        known = session.scalar(select(func.max(Adapter.version)).where(Adapter.name == name)) or 0
        (self.root / name).mkdir(exist_ok=True)
        version = known + 1
        while not _move(staged.folder, self.root / name / str(version)):
            version += 1
        adapter = Adapter(
            name=name,
            version=version,
            tenant=tenant,
            base_model=base_model,
            path=f"{name}/{version}",
            rank=staged.rank,
            checksum=staged.checksum,
            job_id=job_id,
            model_name=model_name,
            step=step,
            metrics=metrics,
        )
        session.add(adapter)
        session.flush()
        return adapter

    def set_alias(self, session: Session, name: str, version: int, tenant: str = DEFAULT_TENANT) -> None:
        """Let the tenant's bare name mean ``version``, in the caller's transaction."""
        alias = session.get(AdapterAlias, (tenant, name))
        if alias is None:
            session.add(AdapterAlias(tenant=tenant, name=name, version=version, previous=0))
        elif alias.version != version:
            alias.previous, alias.version, alias.updated_at = alias.version, version, now()

    def promote(self, name: str, version: int, tenant: str = DEFAULT_TENANT) -> bool:
        """As :meth:`set_alias`. False when there is no such version."""
        with self._sessions.begin() as session:
            found = _find(session, name, version, tenant)
            if found is None or found.step:
                return False
            self.set_alias(session, name, version, tenant)
            return True

    def rollback(self, name: str, tenant: str = DEFAULT_TENANT) -> int | None:
        """Let the name mean what it meant before; return that version. None when there is none, or it was deleted."""
        with self._sessions.begin() as session:
            alias = session.get(AdapterAlias, (tenant, name))
            if alias is None or not alias.previous or _find(session, name, alias.previous, tenant) is None:
                return None
            self.set_alias(session, name, alias.previous, tenant)
            return alias.version

    def resolve(self, text: str, tenant: str = DEFAULT_TENANT) -> Adapter | None:
        """Return the tenant's adapter that ``name``, ``name@version`` or ``ft:…`` means; None where there is none."""
        if text.startswith(FINE_TUNED):
            conditions = (Adapter.model_name == text, Adapter.tenant == tenant, Adapter.deleted_at.is_(None))
            with self._sessions() as session:
                return session.scalar(select(Adapter).where(*conditions))
        parsed = parse_reference(text)
        if parsed is None:
            return None
        name, version = parsed
        with self._sessions() as session:
            if version is None:
                alias = session.get(AdapterAlias, (tenant, name))
                version = alias.version if alias is not None else 0
            return _find(session, name, version, tenant)

    def tenant_of_path(self, path: str) -> str | None:
        """Return whose adapter lies in a folder inside the root, in a folder of it or above it; None for nobody's."""
        try:
            folder = (self.root / path).resolve()
            parts = folder.relative_to(self.root.resolve()).parts
        except (OSError, ValueError):
            return None
        with self._sessions() as session:
            found = select(Adapter.tenant).where(Adapter.path == "/".join(parts[:2])).limit(1)
            return session.scalar(found)

    def all(self, base_model: str | None = None, tenant: str | None = None) -> list[Adapter]:
        """Return every version that is not deleted, by name, newest first. ``tenant`` None is everybody's."""
        conditions: list[ColumnElement[bool]] = [Adapter.deleted_at.is_(None)]
        if base_model is not None:
            conditions.append(Adapter.base_model == base_model)
        if tenant is not None:
            conditions.append(Adapter.tenant == tenant)
        with self._sessions() as session:
            order = (Adapter.name, Adapter.version.desc())
            return list(session.scalars(select(Adapter).where(*conditions).order_by(*order)))

    def checkpoints(self, tenant: str, job_id: str | None = None) -> list[Adapter]:
        """Return the checkpoints that can be asked, of one job or of a tenant's all, newest first."""
        conditions: list[ColumnElement[bool]] = [Adapter.deleted_at.is_(None), Adapter.step > 0]
        conditions.append(Adapter.tenant == tenant)
        if job_id is not None:
            conditions.append(Adapter.job_id == job_id)
        with self._sessions() as session:
            return list(session.scalars(select(Adapter).where(*conditions).order_by(Adapter.id.desc())))

    def has_checkpoint(self, session: Session, job_id: str, step: int) -> bool:
        """Whether a checkpoint was published, in the caller's transaction; one that is trained again is not, twice."""
        conditions = (Adapter.job_id == job_id, Adapter.step == step)
        return session.scalar(select(Adapter.id).where(*conditions)) is not None

    def keep_checkpoints(self, session: Session, job_id: str, count: int) -> None:
        """Hide all but a job's newest checkpoints, in the caller's transaction."""
        conditions = (Adapter.job_id == job_id, Adapter.step > 0, Adapter.deleted_at.is_(None))
        found = session.scalars(select(Adapter).where(*conditions).order_by(Adapter.step.desc()).offset(count))
        for adapter in found:
            adapter.deleted_at = now()

    def aliases(self) -> dict[tuple[str, str], int]:
        """Return (tenant, name) -> the version that it means."""
        with self._sessions() as session:
            return {(alias.tenant, alias.name): alias.version for alias in session.scalars(select(AdapterAlias))}

    def current(self, base_models: Sequence[str], tenant: str | None = None) -> list[Adapter]:
        """Return what bare names mean for these models, newest first: what a worker loads when it starts."""
        aliases = self.aliases()
        found = [adapter for model in base_models for adapter in self.all(model, tenant)]
        found = [adapter for adapter in found if aliases.get((adapter.tenant, adapter.name)) == adapter.version]
        return sorted(found, key=lambda adapter: adapter.created_at, reverse=True)

    def delete(self, name: str, version: int | None, tenant: str = DEFAULT_TENANT) -> list[Adapter]:
        """Hide one version, or all of a name; return what was hidden. Folders stay until :meth:`purge_deleted`."""
        with self._sessions.begin() as session:
            conditions = [Adapter.name == name, Adapter.tenant == tenant, Adapter.deleted_at.is_(None)]
            if version is not None:
                conditions.append(Adapter.version == version)
            at = now()
            session.execute(
                update(Adapter).where(*conditions).values(deleted_at=at).execution_options(synchronize_session=False)
            )
            mine = (Adapter.name == name, Adapter.tenant == tenant)
            deleted = list(session.scalars(select(Adapter).where(*mine, Adapter.deleted_at == at)))
            visible = (*mine, Adapter.deleted_at.is_(None), Adapter.step == 0)
            remaining = session.scalar(select(func.max(Adapter.version)).where(*visible))
            alias = session.get(AdapterAlias, (tenant, name))
            if alias is not None and remaining is None:
                session.delete(alias)
            elif alias is not None and alias.version in [adapter.version for adapter in deleted]:
                alias.version, alias.previous = remaining or 0, 0
            return deleted

    def purge_deleted(self, older_than: float) -> list[str]:
        """Remove the folders of versions that were deleted ``older_than`` seconds ago; return their references."""
        limit = now() - timedelta(seconds=older_than)
        with self._sessions() as session:
            expired = list(session.scalars(select(Adapter).where(Adapter.deleted_at < limit)))
        purged = [adapter for adapter in expired if (self.root / adapter.path).exists()]
        for adapter in purged:
            shutil.rmtree(self.root / adapter.path, ignore_errors=True)
        self._remove_abandoned()
        return [reference(adapter) for adapter in purged]

    def _remove_abandoned(self) -> None:
        """Remove the copies that a killed process was making."""
        limit = time.time() - _ABANDONED_SECONDS
        for folder in (self.root / _STAGING).glob("*"):
            with contextlib.suppress(OSError):
                if folder.stat().st_mtime < limit:
                    shutil.rmtree(folder, ignore_errors=True)


def _find(session: Session, name: str, version: int, tenant: str) -> Adapter | None:
    conditions = (Adapter.name == name, Adapter.version == version, Adapter.tenant == tenant)
    return session.scalar(select(Adapter).where(*conditions, Adapter.deleted_at.is_(None)))


def _move(source: Path, target: Path) -> bool:
    try:
        source.rename(target)
    except OSError:
        if target.exists():
            return False
        raise
    return True

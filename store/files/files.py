"""Clients' files: kept, found, listed, deleted."""

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import delete, func, or_, select
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.sql.elements import ColumnElement

from store.files.folder import FileFolder, IncomingFile
from store.files.ids import is_id, new_id
from store.sql.file_tables import ClientFile
from store.sql.tables import now

log = logging.getLogger(__name__)

PREFIX = "file-"
#: A file without a row is younger than this only while it is being kept. Seconds.
_ORPHAN_SECONDS = 3600.0
#: How long a file is kept that the database does not know. Seconds.
_QUARANTINE_SECONDS = 7 * 86_400.0
#: Ids that are looked up at once.
_PART = 500


@dataclass(frozen=True)
class FileUse:
    """What a tenant keeps."""

    files: int
    bytes: int


@dataclass(frozen=True)
class FileFacts:
    """What is said of a file that is to be kept."""

    tenant: str
    #: The key that it came with.
    owner: str
    purpose: str
    filename: str
    #: How its name on disk ends.
    suffix: str = ""
    #: None is for ever.
    keep_seconds: int | None = None


class FileStore:
    """All reads and writes of clients' files. A file that has expired is not there any more."""

    def __init__(self, sessions: sessionmaker[Session], root: Path) -> None:
        self._sessions = sessions
        self.folder = FileFolder(root)

    def add(self, incoming: IncomingFile, about: FileFacts) -> ClientFile:
        """Keep a file that was written. Raises ``OSError``, ``SQLAlchemyError``."""
        row = self.place(incoming, about)
        try:
            with self._sessions.begin() as session:
                session.add(row)
        except BaseException:
            self.path(row).unlink(missing_ok=True)
            raise
        return row

    def place(self, incoming: IncomingFile, about: FileFacts) -> ClientFile:
        """Put a file that was written where it stays, and return the row that the caller adds. Raises ``OSError``."""
        at, kept = now(), about.keep_seconds
        row = ClientFile(
            id=new_id(PREFIX),
            tenant=about.tenant,
            owner=about.owner,
            purpose=about.purpose,
            filename=about.filename,
            suffix=about.suffix,
            bytes=incoming.bytes,
            checksum=incoming.checksum,
            created_at=at,
            expires_at=None if kept is None else at + timedelta(seconds=kept),
        )
        try:
            incoming.keep(self.path(row))
        except BaseException:
            incoming.discard()
            raise
        return row

    def load(self, file_id: str) -> ClientFile | None:
        if not is_id(file_id, PREFIX):
            return None
        with self._sessions() as session:
            return session.scalar(select(ClientFile).where(ClientFile.id == file_id, _alive()))

    def path(self, file: ClientFile) -> Path:
        """Return where its bytes lie."""
        return self.folder.path(file.id, file.suffix)

    def page(
        self, tenant: str | None, purpose: str | None, limit: int, after: str | None, newest_first: bool
    ) -> tuple[list[ClientFile], bool]:
        """Return files, and whether more follow. ``tenant`` None is everybody's; ``after`` need not exist any more."""
        conditions: list[ColumnElement[bool]] = [_alive()]
        if tenant is not None:
            conditions.append(ClientFile.tenant == tenant)
        if purpose is not None:
            conditions.append(ClientFile.purpose == purpose)
        if after is not None:
            conditions.append(ClientFile.id < after if newest_first else ClientFile.id > after)
        order = ClientFile.id.desc() if newest_first else ClientFile.id.asc()
        with self._sessions() as session:
            found = list(session.scalars(select(ClientFile).where(*conditions).order_by(order).limit(limit + 1)))
        return found[:limit], len(found) > limit

    def use(self, tenant: str) -> FileUse:
        """Return what a tenant keeps now."""
        counted = select(func.count(), func.coalesce(func.sum(ClientFile.bytes), 0)).select_from(ClientFile)
        with self._sessions() as session:
            files, size = session.execute(counted.where(ClientFile.tenant == tenant, _alive())).one()
            return FileUse(int(files), int(size))

    def delete(self, file: ClientFile) -> None:
        """Delete a file. Who reads it at this moment reads it to its end."""
        with self._sessions.begin() as session:
            session.execute(delete(ClientFile).where(ClientFile.id == file.id))
        self.path(file).unlink(missing_ok=True)

    def purge(self) -> int:
        """Remove files that have expired, and what a process left that was killed; return how many files expired.

        A file that the database does not know is put aside for some days before it goes: the database may be an older
        copy of itself.
        """
        with self._sessions() as session:
            expired = list(session.scalars(select(ClientFile).where(ClientFile.expires_at <= now())))
        for file in expired:
            self.delete(file)
        self.folder.purge_abandoned(_ORPHAN_SECONDS)
        for path in self._orphans():
            log.warning("A file that the database does not know is put aside", extra={"file": path.name})
            self.folder.quarantine(path)
        self.folder.purge_quarantine(_QUARANTINE_SECONDS)
        return len(expired)

    def _orphans(self) -> list[Path]:
        stored = {path.name.partition(".")[0]: path for path in self.folder.stored(_ORPHAN_SECONDS)}
        # What else lies there is nobody's business here.
        ids = [file_id for file_id in stored if is_id(file_id, PREFIX)]
        for begin in range(0, len(ids), _PART):
            part = ids[begin : begin + _PART]
            with self._sessions() as session:
                for known in session.scalars(select(ClientFile.id).where(ClientFile.id.in_(part))):
                    del stored[known]
        return [stored[file_id] for file_id in ids if file_id in stored]


def _alive(at: datetime | None = None) -> ColumnElement[bool]:
    return or_(ClientFile.expires_at.is_(None), ClientFile.expires_at > (at or now()))

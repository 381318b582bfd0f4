"""Files that come in parts: begun, joined, given up."""

from datetime import timedelta

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.sql.elements import ColumnElement

from store.files.files import FileFacts, FileStore
from store.files.folder import IncomingFile
from store.files.ids import is_id, new_id
from store.sql.file_tables import ClientFile, Upload, UploadPart
from store.sql.leases import update_one
from store.sql.tables import now

PREFIX, PART_PREFIX = "upload_", "part_"
#: How long an upload can be looked up once its time is over. Seconds.
_KEEP_ENDED_SECONDS = 86_400.0


class UploadStatus:
    """The states of an upload; see :func:`status_of`."""

    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


def status_of(upload: Upload) -> str:
    """Return the state of an upload now, as clients see it."""
    late = upload.status == UploadStatus.PENDING and upload.expires_at <= now()
    return UploadStatus.EXPIRED if late else upload.status


class UploadStore:
    """All reads and writes of uploads."""

    def __init__(self, sessions: sessionmaker[Session], files: FileStore) -> None:
        self._sessions = sessions
        self._files = files

    def create(self, about: FileFacts, size: int, lifetime: float) -> Upload:
        """Begin an upload of ``size`` bytes, which must be complete within ``lifetime`` seconds."""
        at = now()
        upload = Upload(
            id=new_id(PREFIX),
            tenant=about.tenant,
            owner=about.owner,
            purpose=about.purpose,
            filename=about.filename,
            bytes=size,
            status=UploadStatus.PENDING,
            keep_seconds=about.keep_seconds,
            created_at=at,
            expires_at=at + timedelta(seconds=lifetime),
        )
        with self._sessions.begin() as session:
            session.add(upload)
        return upload

    def load(self, upload_id: str) -> Upload | None:
        if not is_id(upload_id, PREFIX):
            return None
        with self._sessions() as session:
            return session.get(Upload, upload_id)

    def pending(self, tenant: str) -> tuple[int, int]:
        """Return how many uploads of a tenant are open, and what they announced together in bytes."""
        counted = select(func.count(), func.coalesce(func.sum(Upload.bytes), 0)).select_from(Upload)
        conditions = (Upload.tenant == tenant, Upload.status == UploadStatus.PENDING, Upload.expires_at > now())
        with self._sessions() as session:
            uploads, size = session.execute(counted.where(*conditions)).one()
            return int(uploads), int(size)

    def add_part(self, upload: Upload, incoming: IncomingFile) -> UploadPart | None:
        """Keep a part that was written; None where the upload is not open any more. Raises ``OSError``."""
        part = UploadPart(id=new_id(PART_PREFIX), upload_id=upload.id, bytes=incoming.bytes, created_at=now())
        path = self._files.folder.part(upload.id, part.id)
        try:
            incoming.keep(path)
            with self._sessions.begin() as session:
                # Writes the row, so that no cancel can come in between.
                added = update_one(session, Upload, _open(upload), status=UploadStatus.PENDING)
                if added:
                    session.add(part)
        except BaseException:
            incoming.discard()
            path.unlink(missing_ok=True)
            raise
        if not added:
            path.unlink(missing_ok=True)
            return None
        return part

    def parts(self, upload: Upload) -> dict[str, int]:
        """Return the size of each part that has come."""
        with self._sessions() as session:
            found = session.scalars(select(UploadPart).where(UploadPart.upload_id == upload.id))
            return {part.id: part.bytes for part in found}

    def join(self, upload: Upload, part_ids: list[str]) -> IncomingFile:
        """Return the parts as one file that is to be kept or discarded. Raises ``OSError``."""
        return self._files.folder.join(upload.id, part_ids, upload.bytes)

    def complete(
        self, upload: Upload, incoming: IncomingFile, suffix: str, keep_seconds: int | None
    ) -> ClientFile | None:
        """Keep the joined file; None where the upload is not open any more. Raises ``OSError``, ``SQLAlchemyError``."""
        about = FileFacts(upload.tenant, upload.owner, upload.purpose, upload.filename, suffix, keep_seconds)
        file = self._files.place(incoming, about)
        completed = False
        try:
            with self._sessions.begin() as session:
                # Both or neither: who dies in between can do it again.
                values = {"status": UploadStatus.COMPLETED, "file_id": file.id}
                completed = update_one(session, Upload, _open(upload), **values)
                if completed:
                    session.add(file)
        finally:
            if not completed:
                self._files.path(file).unlink(missing_ok=True)
        if not completed:
            return None
        self._files.folder.remove_upload(upload.id)
        return file

    def cancel(self, upload: Upload) -> bool:
        """Give it up. False when it is not open any more."""
        with self._sessions.begin() as session:
            cancelled = update_one(session, Upload, _open(upload), status=UploadStatus.CANCELLED)
        if cancelled:
            self._files.folder.remove_upload(upload.id)
        return cancelled

    def expire(self) -> int:
        """Give up those that were not completed in time, and remove what is left of those that ended; return how many
        had parts left."""
        with self._sessions.begin() as session:
            late = (Upload.expires_at <= now(), Upload.status == UploadStatus.PENDING)
            session.execute(update(Upload).where(*late).values(status=UploadStatus.EXPIRED))
        left = 0
        for upload_id in self._files.folder.uploads():
            if not is_id(upload_id, PREFIX):
                continue
            upload = self.load(upload_id)
            if upload is None or upload.status != UploadStatus.PENDING:
                self._files.folder.remove_upload(upload_id)
                left += 1
        with self._sessions.begin() as session:
            ended = (Upload.expires_at <= now() - timedelta(seconds=_KEEP_ENDED_SECONDS),)
            session.execute(delete(UploadPart).where(UploadPart.upload_id.in_(select(Upload.id).where(*ended))))
            session.execute(delete(Upload).where(*ended))
        return left


def _open(upload: Upload) -> list[ColumnElement[bool]]:
    return [Upload.id == upload.id, Upload.status == UploadStatus.PENDING, Upload.expires_at > now()]

"""Files that come in parts: begun, joined, given up."""

from datetime import timedelta

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, sessionmaker

from store.files.files import FileStore
from store.files.folder import IncomingFile
from store.files.ids import new_id
from store.sql.file_tables import ClientFile, Upload, UploadPart
from store.sql.leases import update_one
from store.sql.tables import now

PREFIX, PART_PREFIX = "upload_", "part_"


class UploadStatus:
    """The states of an upload; see :func:`status_of`."""

    PENDING = "pending"
    COMPLETING = "completing"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


def status_of(upload: Upload) -> str:
    """Return the state of an upload now, as clients see it."""
    if upload.status not in (UploadStatus.PENDING, UploadStatus.COMPLETING):
        return upload.status
    return UploadStatus.EXPIRED if upload.expires_at <= now() else UploadStatus.PENDING


class UploadStore:
    """All reads and writes of uploads."""

    def __init__(self, sessions: sessionmaker[Session], files: FileStore) -> None:
        self._sessions = sessions
        self._files = files

    def create(
        self,
        *,
        tenant: str,
        owner: str,
        purpose: str,
        filename: str,
        size: int,
        lifetime: float,
        keep_seconds: int | None,
    ) -> Upload:
        """Begin an upload of ``size`` bytes, which must be complete within ``lifetime`` seconds."""
        at = now()
        upload = Upload(
            id=new_id(PREFIX),
            tenant=tenant,
            owner=owner,
            purpose=purpose,
            filename=filename,
            bytes=size,
            status=UploadStatus.PENDING,
            keep_seconds=keep_seconds,
            created_at=at,
            expires_at=at + timedelta(seconds=lifetime),
        )
        with self._sessions.begin() as session:
            session.add(upload)
        return upload

    def load(self, upload_id: str) -> Upload | None:
        with self._sessions() as session:
            return session.get(Upload, upload_id)

    def count_pending(self, tenant: str) -> int:
        """Return how many uploads of a tenant are open."""
        waiting = select(func.count()).select_from(Upload)
        conditions = (Upload.tenant == tenant, Upload.status == UploadStatus.PENDING, Upload.expires_at > now())
        with self._sessions() as session:
            return session.scalar(waiting.where(*conditions)) or 0

    def add_part(self, upload: Upload, incoming: IncomingFile) -> UploadPart | None:
        """Keep a part that was written; None where the upload is not open any more. Raises ``OSError``."""
        part = UploadPart(id=new_id(PART_PREFIX), upload_id=upload.id, bytes=incoming.bytes, created_at=now())
        path = self._files.folder.part(upload.id, part.id)
        try:
            incoming.keep(path)
            with self._sessions.begin() as session:
                # Writes the row, so that no cancel can come in between.
                open_now = [Upload.id == upload.id, Upload.status == UploadStatus.PENDING]
                added = update_one(session, Upload, open_now, status=UploadStatus.PENDING)
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

    def begin_completing(self, upload: Upload) -> bool:
        """Let nobody else complete or cancel it. False when it is not open any more."""
        return self._change(upload, UploadStatus.PENDING, UploadStatus.COMPLETING)

    def reopen(self, upload: Upload) -> None:
        """It could not be completed: parts may come again."""
        self._change(upload, UploadStatus.COMPLETING, UploadStatus.PENDING)

    def join(self, upload: Upload, part_ids: list[str]) -> IncomingFile:
        """Return the parts as one file that is to be kept or discarded. Raises ``OSError``."""
        return self._files.folder.join(upload.id, part_ids, upload.bytes)

    def complete(self, upload: Upload, incoming: IncomingFile, suffix: str, keep_seconds: int | None) -> ClientFile:
        """Keep the joined file. Raises ``OSError``, ``SQLAlchemyError``."""
        file = self._files.add(
            incoming,
            tenant=upload.tenant,
            owner=upload.owner,
            purpose=upload.purpose,
            filename=upload.filename,
            suffix=suffix,
            keep_seconds=keep_seconds,
        )
        self._change(upload, UploadStatus.COMPLETING, UploadStatus.COMPLETED, file_id=file.id)
        self._files.folder.remove_upload(upload.id)
        return file

    def cancel(self, upload: Upload) -> bool:
        """Give it up. False when it is not open any more."""
        cancelled = self._change(upload, UploadStatus.PENDING, UploadStatus.CANCELLED)
        if cancelled:
            self._files.folder.remove_upload(upload.id)
        return cancelled

    def expire(self) -> int:
        """Give up those that were not completed in time; return how many."""
        open_states = (UploadStatus.PENDING, UploadStatus.COMPLETING)
        with self._sessions.begin() as session:
            late = (Upload.expires_at <= now(), Upload.status.in_(open_states))
            session.execute(update(Upload).where(*late).values(status=UploadStatus.EXPIRED))
        with self._sessions() as session:
            ended = session.scalars(select(Upload.id).where(Upload.status == UploadStatus.EXPIRED))
            found = [upload_id for upload_id in ended if self._files.folder.upload(upload_id).exists()]
        for upload_id in found:
            self._files.folder.remove_upload(upload_id)
        return len(found)

    def _change(self, upload: Upload, source: str, target: str, **values: str) -> bool:
        with self._sessions.begin() as session:
            conditions = [Upload.id == upload.id, Upload.status == source]
            return update_one(session, Upload, conditions, status=target, **values)

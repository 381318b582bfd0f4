"""Files that come in parts: for what is too large, or a line too bad, for one call."""

from services.access import Access
from services.errors import Conflict, InvalidRequest, UploadNotFound
from services.files import FileService, NewFile, keep_seconds, shown_name, storage_errors, suffix_of
from services.limits import Limits
from store.files.files import FileFacts
from store.files.folder import IncomingFile
from store.files.uploads import UploadStatus, UploadStore, status_of
from store.principal import Principal
from store.sql.file_tables import ClientFile, Upload, UploadPart

#: How long an upload may take. Seconds; OpenAI's.
_LIFETIME_SECONDS = 3600.0
#: Largest part. Bytes; OpenAI's.
MAX_PART_BYTES = 64 * 1024 * 1024
#: Uploads that a tenant may have open.
_MAX_OPEN = 100
_MAX_PARTS = 10_000


class UploadService:
    """The uploads of all tenants."""

    def __init__(self, store: UploadStore, files: FileService, access: Access, limits: Limits) -> None:
        self._store = store
        self._files = files
        self._access = access
        self._limits = limits

    def create(self, principal: Principal, new: NewFile, size: int) -> Upload:
        """Begin an upload of ``size`` bytes. Raises ``InvalidRequest``."""
        self._access.require_active(principal)
        self._limits.count_request(principal)
        if size > self._files.max_bytes:
            description = f"{size} bytes are more than a file may have ({self._files.max_bytes})"
            raise InvalidRequest.of("file_too_large", "bytes", description)
        uploads, announced = self._store.pending(principal.tenant)
        self._files.require_room(principal, size + announced, "bytes")
        if uploads >= _MAX_OPEN:
            description = f"{_MAX_OPEN} uploads are open already: complete or cancel some"
            raise InvalidRequest.of("too_many_uploads", "", description)
        name = shown_name(new.filename, "filename")
        about = FileFacts(principal.tenant, principal.id, new.purpose, name, keep_seconds=new.keep_seconds)
        return self._store.create(about, size, _LIFETIME_SECONDS)

    def find(self, principal: Principal, upload_id: str) -> tuple[Upload, ClientFile | None]:
        """Return an upload, and the file that came of it. Raises ``UploadNotFound``."""
        upload = self._find(principal, upload_id)
        return upload, self._files.find(principal, upload.file_id, "file_id") if upload.file_id else None

    def admit_part(self, principal: Principal, upload_id: str) -> Upload:
        """A part is about to come. Raises ``UploadNotFound``, ``Conflict``, ``InvalidRequest``."""
        self._access.require_active(principal)
        self._limits.count_request(principal)
        upload = self._find(principal, upload_id)
        if status_of(upload) != UploadStatus.PENDING:
            raise _not_open(upload)
        self._require_room_for_part(upload, 0)
        return upload

    @staticmethod
    def part_limit(upload: Upload) -> int:
        """Return how large a part may be. Bytes."""
        return min(MAX_PART_BYTES, upload.bytes)

    def _require_room_for_part(self, upload: Upload, size: int) -> None:
        sizes = self._store.parts(upload).values()
        # A part whose answer was lost may come twice; what is left over is thrown away.
        if len(sizes) >= _MAX_PARTS or sum(sizes) + size > 2 * upload.bytes:
            description = f"More has come than the {upload.bytes} bytes that were announced: complete it, or cancel it"
            raise InvalidRequest.of("too_many_parts", "data", description)

    def add_part(self, upload: Upload, incoming: IncomingFile) -> UploadPart:
        """Keep a part that has come whole. Raises ``Conflict``, ``InvalidRequest``."""
        if not incoming.bytes:
            incoming.discard()
            raise InvalidRequest.of("empty_file", "data", "The part is empty")
        try:
            self._require_room_for_part(upload, incoming.bytes)
        except InvalidRequest:
            incoming.discard()
            raise
        with storage_errors():
            part = self._store.add_part(upload, incoming)
        if part is None:
            raise _not_open(upload)
        return part

    def complete(self, principal: Principal, upload_id: str, part_ids: list[str], md5: str) -> Upload:
        """Make a file of the parts, in this order. Raises ``InvalidRequest``, ``Conflict``, ``UploadNotFound``."""
        upload = self._find(principal, upload_id)
        if upload.status == UploadStatus.COMPLETED:
            # The answer of the first try was lost.
            return upload
        sizes = self._store.parts(upload)
        missing = next((part_id for part_id in part_ids if part_id not in sizes), None)
        if missing is not None:
            raise InvalidRequest.of("invalid_value", "part_ids", f"'{missing}' is no part of upload '{upload_id}'")
        if len(set(part_ids)) != len(part_ids):
            raise InvalidRequest.of("invalid_value", "part_ids", "A part may be named once")
        total = sum(sizes[part_id] for part_id in part_ids)
        if total != upload.bytes:
            description = f"The parts have {total} bytes together, and {upload.bytes} were announced"
            raise InvalidRequest.of("size_mismatch", "part_ids", description)
        self._files.require_room(principal, total, "part_ids")
        if status_of(upload) != UploadStatus.PENDING:
            raise _not_open(upload)
        joined = self._join(upload, part_ids, md5)
        found = self._find(principal, upload_id)
        if not joined and found.status != UploadStatus.COMPLETED:
            raise _not_open(upload)
        return found

    def _join(self, upload: Upload, part_ids: list[str], md5: str) -> bool:
        """Keep the parts as one file; False where the upload was ended meanwhile."""
        new = NewFile(upload.filename, upload.purpose, upload.keep_seconds)
        with storage_errors():
            try:
                whole = self._store.join(upload, part_ids)
            except FileNotFoundError:
                # Whoever ended it removed them.
                return False
            if md5 and md5.lower() != whole.md5:
                whole.discard()
                description = f"The parts have the MD5 {whole.md5} together, not {md5[:64]}"
                raise InvalidRequest.of("checksum_mismatch", "md5", description)
            suffix = suffix_of(upload.filename, upload.purpose)
            return self._store.complete(upload, whole, suffix, keep_seconds(new)) is not None

    def cancel(self, principal: Principal, upload_id: str) -> Upload:
        """Give an upload up. Raises ``Conflict``, ``UploadNotFound``."""
        upload = self._find(principal, upload_id)
        if not self._store.cancel(upload) and upload.status != UploadStatus.CANCELLED:
            raise _not_open(upload)
        return self._find(principal, upload_id)

    def _find(self, principal: Principal, upload_id: str) -> Upload:
        upload = self._store.load(upload_id)
        if upload is None or not self._access.can_see(principal, upload.tenant):
            raise UploadNotFound(upload_id)
        return upload


def _not_open(upload: Upload) -> Conflict:
    description = f"Upload '{upload.id}' is not open any more: it was completed or cancelled, or has expired"
    return Conflict("wrong_state", "upload_id", description)

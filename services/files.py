"""Files that clients upload: what may be kept, and who sees it. OpenAI's words and bounds."""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from engines.training.datasets.rows import FILE_TYPES
from services.access import Access
from services.errors import FileNotFound, InvalidRequest, StorageFailed
from services.limits import Limits
from settings import Settings
from store.files.files import FileFacts, FileStore
from store.files.folder import IncomingFile
from store.principal import Principal
from store.sql.file_tables import ClientFile
from text import has_control_characters, is_whole

log = logging.getLogger(__name__)

#: What a client may say that a file is for.
PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
#: How long files of a purpose are kept where the client does not say. Seconds; the others stay.
_KEEP_SECONDS = {"batch": 30 * 86_400}
#: Purposes whose files are read line by line, and by the ending of their name.
_ROWS = ("fine-tune", "batch")
_MAX_NAME = 255


@dataclass(frozen=True)
class NewFile:
    """What a client says of a file."""

    filename: str
    purpose: str
    #: How long to keep it, in seconds; None by its purpose.
    keep_seconds: int | None


class FileService:
    """The files of all tenants, each tenant's apart."""

    def __init__(self, settings: Settings, store: FileStore, access: Access, limits: Limits) -> None:
        self._settings = settings
        self._store = store
        self._access = access
        self._limits = limits

    @property
    def max_bytes(self) -> int:
        """The largest file."""
        return self._settings.max_file_bytes

    def admit(self, principal: Principal) -> None:
        """A file is about to come. Raises ``RateLimited``, ``InvalidRequest`` where there is no room for one more."""
        self._access.require_active(principal)
        self._limits.count_request(principal)
        self.require_room(principal, 0)

    def require_room(self, principal: Principal, size: int, field: str = "file") -> None:
        """Raises ``InvalidRequest`` when a tenant keeps as much as it may."""
        use = self._store.use(principal.tenant)
        if use.files >= self._settings.max_files:
            description = f"{use.files} files are kept already, and {self._settings.max_files} may be: delete some"
            raise InvalidRequest.of("too_many_files", field, description)
        if use.bytes + size > self._settings.max_stored_bytes:
            description = (
                f"The files that are kept hold {use.bytes} bytes; with this one it would be more than the "
                f"{self._settings.max_stored_bytes} allowed: delete some"
            )
            raise InvalidRequest.of("storage_full", field, description)

    def begin(self, limit: int) -> IncomingFile:
        """Begin to write a file of up to ``limit`` bytes. Raises ``StorageFailed``."""
        with storage_errors():
            return self._store.folder.begin(limit)

    def add(self, principal: Principal, incoming: IncomingFile, new: NewFile) -> ClientFile:
        """Keep a file that has come whole. Raises ``InvalidRequest``, ``StorageFailed``."""
        try:
            name = shown_name(new.filename)
            if not incoming.bytes:
                raise InvalidRequest.of("empty_file", "file", "The file is empty")
            self.require_room(principal, incoming.bytes)
        except BaseException:
            incoming.discard()
            raise
        with storage_errors():
            about = FileFacts(
                principal.tenant, principal.id, new.purpose, name, suffix_of(name, new.purpose), keep_seconds(new)
            )
            return self._store.add(incoming, about)

    def find(self, principal: Principal, file_id: str, field: str = "id") -> ClientFile:
        """Return a file that the principal sees. Raises ``FileNotFound`` for any other."""
        file = self._store.load(file_id)
        if file is None or not self._access.can_see(principal, file.tenant):
            raise FileNotFound(file_id, field)
        return file

    def input(self, principal: Principal, file_id: str, purpose: str, field: str) -> tuple[ClientFile, Path]:
        """Return a file that work is to be done on, and where its bytes lie.

        Raises ``InvalidRequest``, which names ``field``, for one that is not there, or is for something else.
        """
        try:
            file = self.find(principal, file_id, field)
            path = self.path(file)
        except FileNotFound as error:
            raise InvalidRequest.of("not_found", field, error.failure.message) from None
        if file.purpose != purpose:
            description = f"File '{file.id}' is for '{file.purpose}'; it must have been uploaded for '{purpose}'"
            raise InvalidRequest.of("invalid_value", field, description)
        return file, path

    def page(
        self, principal: Principal, purpose: str | None, limit: int, after: str | None, newest_first: bool
    ) -> tuple[list[ClientFile], bool]:
        """Return a page of the files that the principal sees, and whether more follow."""
        return self._store.page(self._access.visible_tenant(principal), purpose, limit, after, newest_first)

    def path(self, file: ClientFile) -> Path:
        """Return where a file's bytes lie. Raises ``FileNotFound`` where they are gone."""
        path = self._store.path(file)
        if not path.exists():
            raise FileNotFound(file.id)
        return path

    def delete(self, principal: Principal, file_id: str) -> None:
        """Delete a file; what was begun with it goes on. Raises ``FileNotFound``."""
        with storage_errors():
            self._store.delete(self.find(principal, file_id))

    def link_or_copy(self, source: Path, target: Path, field: str) -> None:
        """Let a file also lie at ``target``, for work that outlives it.

        Raises ``InvalidRequest``, which names ``field``, where it was deleted meanwhile, ``StorageFailed``.
        """
        try:
            self._store.folder.link_or_copy(source, target)
        except FileNotFoundError:
            raise InvalidRequest.of("not_found", field, f"What '{field}' names was deleted meanwhile") from None
        except OSError as error:
            raise _failed(error) from error


def keep_seconds(new: NewFile) -> int | None:
    """Return how long a file is kept, in seconds; None for ever."""
    return _KEEP_SECONDS.get(new.purpose) if new.keep_seconds is None else new.keep_seconds


def shown_name(filename: str, field: str = "file") -> str:
    """Return a client's name of a file without its folders. Raises ``InvalidRequest``."""
    name = filename.replace("\\", "/").rpartition("/")[2].strip() or "file"
    if len(name) > _MAX_NAME or has_control_characters(name) or not is_whole(name):
        description = f"The name of a file is at most {_MAX_NAME} characters, without control characters"
        raise InvalidRequest.of("invalid_value", field, description)
    return name


def suffix_of(name: str, purpose: str) -> str:
    """Return how a file's name on disk ends: by that its kind of rows is told. Lines of JSON where it says nothing."""
    if purpose not in _ROWS:
        return ""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix if suffix in FILE_TYPES else ".jsonl"


@contextmanager
def storage_errors() -> Iterator[None]:
    """What the file system refuses is told in the service's words."""
    try:
        yield
    except OSError as error:
        raise _failed(error) from error


def _failed(error: OSError) -> StorageFailed:
    log.error("Files cannot be written or read: %s", errno.errorcode.get(error.errno or 0, error.__class__.__name__))
    return StorageFailed()

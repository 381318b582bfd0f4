"""The folder that clients' files lie in. No name in it is a client's.

``files/<id>`` is a whole file, ``incoming/`` holds what is being written, ``uploads/<id>/`` the parts of one upload,
``batches/<id>/`` what a batch needs while it runs, ``unknown/`` what the database does not know. A file appears under
its id in one step, when all of it is on disk.
"""

import contextlib
import hashlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_INCOMING, _UPLOADS, _FILES, _QUARANTINE = "incoming", "uploads", "files", "unknown"
_COPY_BYTES = 1024 * 1024


class TooLarge(Exception):
    """More bytes came than may."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"more than {limit} bytes")
        self.limit = limit


class IncomingFile:
    """A file that is being written: counted and hashed on the way. Its writer keeps or discards it."""

    def __init__(self, path: Path, limit: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._limit = limit
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._file = path.open("xb")
        #: What has come so far.
        self.bytes = 0

    def write(self, data: bytes) -> int:
        """Append. Raises ``TooLarge``, ``OSError``."""
        self.bytes += len(data)
        if self.bytes > self._limit:
            raise TooLarge(self._limit)
        self._sha256.update(data)
        self._md5.update(data)
        return self._file.write(data)

    def seek(self, position: int) -> int:
        """Parsers of forms go back to the beginning of what they wrote; nobody reads it here."""
        return position

    @property
    def checksum(self) -> str:
        """SHA-256, hex."""
        return self._sha256.hexdigest()

    @property
    def md5(self) -> str:
        """MD5, hex: what OpenAI's clients may send to be compared."""
        return self._md5.hexdigest()

    def keep(self, target: Path) -> None:
        """Let it appear under its name, whole. Raises ``OSError``."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        target.parent.mkdir(parents=True, exist_ok=True)
        self._path.chmod(0o444)
        self._path.rename(target)

    def discard(self) -> None:
        """Remove it. Nothing happens to one that was kept."""
        # A full disk refuses what is still to be written; it goes all the same.
        with contextlib.suppress(OSError):
            self._file.close()
        self._path.unlink(missing_ok=True)


class FileFolder:
    """All reads and writes below ``root``, which every host of an installation shares."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def begin(self, limit: int) -> IncomingFile:
        """Begin to write a file of up to ``limit`` bytes. Raises ``OSError``."""
        return IncomingFile(self.root / _INCOMING / secrets.token_hex(12), limit)

    def path(self, file_id: str, suffix: str) -> Path:
        """Return where a whole file lies."""
        return self.root / _FILES / f"{file_id}{suffix}"

    def uploads(self) -> list[str]:
        """Return the ids that have a folder of parts."""
        try:
            return [path.name for path in (self.root / _UPLOADS).iterdir()]
        except FileNotFoundError:
            return []

    def upload(self, upload_id: str) -> Path:
        """Return the folder of an upload's parts."""
        return self.root / _UPLOADS / upload_id

    def part(self, upload_id: str, part_id: str) -> Path:
        """Return where a part of an upload lies."""
        return self.upload(upload_id) / part_id

    def join(self, upload_id: str, part_ids: Iterable[str], limit: int) -> IncomingFile:
        """Return an upload's parts as one file. Raises ``OSError``, ``TooLarge``."""
        whole = self.begin(limit)
        try:
            for part_id in part_ids:
                with self.part(upload_id, part_id).open("rb") as part:
                    while data := part.read(_COPY_BYTES):
                        whole.write(data)
        except BaseException:
            whole.discard()
            raise
        return whole

    def remove_upload(self, upload_id: str) -> None:
        """Remove an upload's parts."""
        shutil.rmtree(self.upload(upload_id), ignore_errors=True)

    @staticmethod
    def link_or_copy(source: Path, target: Path) -> None:
        """Let a file also lie at ``target``, for whoever reads it there after it was deleted. Raises ``OSError``."""
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            # The bytes stay as long as one of the names does.
            os.link(source, target)
        except OSError:
            # Another file system.
            draft = target.with_name(f"{target.name}.{secrets.token_hex(4)}")
            shutil.copyfile(source, draft)
            draft.rename(target)

    def stored(self, older_than: float) -> list[Path]:
        """Return the whole files that were written ``older_than`` seconds ago."""
        return _older(self.root / _FILES, older_than)

    def purge_abandoned(self, older_than: float) -> None:
        """Remove what nobody has written to for so long, in seconds."""
        for path in _older(self.root / _INCOMING, older_than):
            _remove(path)

    def quarantine(self, path: Path) -> None:
        """Take a whole file away, to be removed later."""
        target = self.root / _QUARANTINE / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.rename(target)
            os.utime(target)
        except OSError as error:
            log.warning("A file cannot be put aside: %s", error.strerror, extra={"file": path.name})

    def purge_quarantine(self, older_than: float) -> None:
        """Remove what was put aside so long ago, in seconds."""
        for path in _older(self.root / _QUARANTINE, older_than):
            _remove(path)


def remove_copies(options: dict[str, Any]) -> None:
    """Remove what a job kept for itself, once it cannot go on any more. ``options``: the job's."""
    for path in options.get("copies", ()):
        _remove(Path(path))


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("A file cannot be removed: %s", error.strerror, extra={"file": path.name})


def _older(folder: Path, seconds: float) -> list[Path]:
    limit, found = time.time() - seconds, []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    if entry.is_file(follow_symlinks=False) and entry.stat().st_mtime < limit:
                        found.append(Path(entry.path))
                except OSError:
                    # It went meanwhile, or cannot be looked at.
                    continue
    except FileNotFoundError:
        return []
    return found

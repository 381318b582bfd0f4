"""What a batch has on disk while it runs: its own copy of the input, and the journals of its results.

A journal is a line of JSON for each result, appended to by one runner alone: a runner that was thought dead writes on
in its own, which nobody reads any more. Half a line at the end is what a kill left, and is passed over.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_INPUT = "input.jsonl"
_JOURNAL = "results.{:08d}.jsonl"


@dataclass(frozen=True)
class Place:
    """Where a line lies."""

    journal: Path
    offset: int


@dataclass(frozen=True)
class Result:
    """What came of a line of the input."""

    #: From 1, blank ones counted.
    line: int
    #: Whether it goes to the output file, and not to the errors.
    answered: bool
    #: The line of the output or error file.
    document: dict[str, Any]

    def encode(self) -> bytes:
        found = {"line": self.line, "answered": self.answered, "document": self.document}
        return json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def decode(cls, text: bytes) -> "Result":
        """Raises ``ValueError``."""
        found = json.loads(text)
        return cls(found["line"], found["answered"], found["document"])


class BatchFolder:
    """The folder of one batch, inside the folder of clients' files."""

    def __init__(self, root: Path, batch_id: str) -> None:
        self._path = root / "batches" / batch_id

    @property
    def input(self) -> Path:
        """The batch's own copy of its file."""
        return self._path / _INPUT

    def journal(self, fence: int) -> "Journal":
        """Begin the journal of a runner. Raises ``OSError``."""
        self._path.mkdir(parents=True, exist_ok=True)
        return Journal(self._path / _JOURNAL.format(fence))

    def results(self, before: int) -> Iterator[tuple[Place, Result]]:
        """Yield what earlier runners came to, oldest first; a line may come twice, and the first one counts."""
        for path in sorted(self._path.glob("results.*.jsonl")):
            if path.name >= _JOURNAL.format(before):
                return
            yield from _read(path)

    def remove(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self._path, ignore_errors=True)


def batch_folders(root: Path) -> list[tuple[str, float]]:
    """Return the ids that have a folder, and when it was last changed (Unix time, seconds)."""
    found = []
    for path in (root / "batches").glob("*"):
        with contextlib.suppress(OSError):
            found.append((path.name, path.stat().st_mtime))
    return found


class Journal:
    """What one runner writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("xb")
        self._end = 0

    def append(self, result: Result) -> Place:
        """Add a result; it is safe once :meth:`sync` was called. Raises ``OSError``."""
        place, data = Place(self.path, self._end), result.encode()
        self._file.write(data)
        self._end += len(data)
        return place

    def sync(self) -> None:
        """Let what was added survive the host. Raises ``OSError``."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_at(place: Place) -> Result:
    """Return a result. Raises ``OSError``."""
    with place.journal.open("rb") as file:
        file.seek(place.offset)
        return Result.decode(file.readline())


def _read(path: Path) -> Iterator[tuple[Place, Result]]:
    with path.open("rb") as file:
        offset = 0
        for text in file:
            try:
                result = Result.decode(text) if text.endswith(b"\n") else None
            except ValueError:
                result = None
            if result is not None:
                yield Place(path, offset), result
            offset += len(text)

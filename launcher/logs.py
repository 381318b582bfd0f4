"""What the processes write, each in a file of its own, and what the supervisor notes of them."""

import time
from pathlib import Path
from typing import IO

#: The supervisor's own file.
_SUPERVISOR = "supervisor"


class ProcessLogs:
    """The files of one run in ``folder``; those of the run before are replaced."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._begun: set[str] = set()

    def path(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def open(self, name: str) -> IO[bytes]:
        """Open a process' file for it to write to: anew at its first start, at its end later."""
        mode = "ab" if name in self._begun else "wb"
        self._begun.add(name)
        return self.path(name).open(mode, buffering=0)

    def note(self, text: str) -> None:
        """Write a line of the supervisor's own."""
        with self.open(_SUPERVISOR) as file:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}\n".encode())

    def tail(self, name: str, lines: int = 15) -> str:
        """Return the last lines that a process wrote."""
        path = self.path(name)
        if not path.exists():
            return ""
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])

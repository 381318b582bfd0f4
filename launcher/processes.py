"""The Procfile's processes under honcho, their output in files."""

import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

import honcho.manager
from honcho.environ import parse_procfile
from honcho.manager import Manager
from honcho.printer import Message

ROOT = Path(__file__).resolve().parents[1]


class LogFiles:
    """Takes honcho's lines and writes each process's own to ``<folder>/<name>.log``."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._files: dict[str, IO[bytes]] = {}
        #: Honcho sets the width of its prefix here; files need none.
        self.width = 0

    def path(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def write(self, message: Message) -> None:
        if message.name not in self._files:
            self._files[message.name] = self.path(message.name).open("wb", buffering=0)
        data = message.data if isinstance(message.data, bytes) else str(message.data).encode()
        self._files[message.name].write(data)

    def tail(self, name: str, lines: int = 15) -> str:
        """Return the last lines a process wrote."""
        path = self.path(name)
        if not path.exists():
            return ""
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


class ProcessManager(Manager):
    """Honcho's manager; calls ``on_started`` once all processes run."""

    def __init__(self, logs: LogFiles, grace: float, on_started: Callable[[], None]) -> None:
        super().__init__(logs)
        self._on_started = on_started
        #: Honcho's own is 5 s, less than a drain may take.
        honcho.manager.KILL_WAIT = grace

    def add(self, names: list[str], env: Mapping[str, str]) -> None:
        """Add processes of the Procfile by name."""
        commands = parse_procfile((ROOT / "Procfile").read_text()).processes
        for name in names:
            # ``exec`` saves a shell that would stand between a signal and the process.
            self.add_process(name, f"exec {commands[name]}", env=dict(env), cwd=str(ROOT))

    def _start(self) -> None:
        super()._start()
        # Only now: honcho forks, and a fork beside a running thread is not safe.
        self._on_started()

    def culprit(self) -> str | None:
        """Return the process that ended by itself, so that all the others were told to; or None."""
        ended = {name: process["returncode"] for name, process in self._processes.items() if "returncode" in process}
        for name, status in ended.items():
            if status not in (0, -signal.SIGTERM, 128 + signal.SIGTERM):
                return str(name)
        return next(iter(ended), None)

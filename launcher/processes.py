"""The Procfile's processes under honcho, their output in files."""

import multiprocessing
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import honcho.manager
from honcho.environ import parse_procfile
from honcho.manager import Manager
from honcho.printer import Message

#: A process that ends more often than this within the time below (seconds) ends everything.
MAX_RESTARTS = 5
_RESTARTS_WITHIN_SECONDS = 600.0
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
    """Honcho's manager, which also starts a process again that ended by itself.

    Calls ``on_started`` once all processes run. Until ``may_restart`` says so, and after more than
    ``MAX_RESTARTS`` of one process, an end is honcho's: everything stops.
    """

    def __init__(
        self, logs: LogFiles, grace: float, on_started: Callable[[], None], may_restart: Callable[[], bool]
    ) -> None:
        super().__init__(logs)
        self._on_started = on_started
        self._may_restart = may_restart
        self._ends: defaultdict[str, list[float]] = defaultdict(list)
        #: Honcho's own is 5 s, less than a drain may take.
        honcho.manager.KILL_WAIT = grace
        self.events: _Events = _Events(multiprocessing.Queue(), self._heard)

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

    def _heard(self, message: Message) -> Message:
        """Look at what a process tells before honcho does; returns what honcho shall hear."""
        if message.type == "stop" and not self._terminating and self._restartable(message.name):
            self._run_again(message.name)
            text = f"{message.name} ended (rc={message.data['returncode']}), starting it again\n"
            return Message("line", text, message.time, "system", None)
        if message.type == "start" and self._terminating:
            # It was being started again while everything was told to stop.
            self._procmgr.terminate(message.data["pid"])
        return message

    def _restartable(self, name: str) -> bool:
        now = time.monotonic()
        ends = self._ends[name]
        ends[:] = [when for when in ends if now - when < _RESTARTS_WITHIN_SECONDS] + [now]
        return self._may_restart() and len(ends) <= MAX_RESTARTS

    def _run_again(self, name: str) -> None:
        process = self._processes[name]
        process["process"].join()
        process["process"] = multiprocessing.Process(name=name, target=process["obj"].run, args=(self.events, True))
        process["process"].start()

    def culprit(self) -> str | None:
        """Return the process that ended by itself, so that all the others were told to; or None."""
        ended = {name: process["returncode"] for name, process in self._processes.items() if "returncode" in process}
        for name, status in ended.items():
            if status not in (0, -signal.SIGTERM, 128 + signal.SIGTERM):
                return str(name)
        return next(iter(ended), None)


class _Events:
    """Honcho's queue of events, with a look at each as it is taken out."""

    def __init__(self, queue: Any, heard: Callable[[Message], Message]) -> None:
        self._queue = queue
        self._heard = heard

    def put(self, message: Message) -> None:
        self._queue.put(message)

    def get(self, timeout: float) -> Message:
        return self._heard(self._queue.get(timeout=timeout))

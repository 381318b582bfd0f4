"""Starts processes, starts them again when they end, and leaves none behind.

Every process is the leader of a group of its own and asks the kernel to be killed when this one dies
(``PR_SET_PDEATHSIG`` follows the starting *thread*: all are started from the thread that calls
:meth:`Supervisor.run`). When a process ends, however it ended, what is left of its group is killed
before it is started again. No pipe stands between a process and its log file, so that an orphan that
holds one can hold up nothing.

Neither honcho (a dead process is seen only when the last of its children closes the pipe; an end stops
everything) nor supervisord (leaves grandchildren, and all of its children when it is killed) does this.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from child_process import die_with_parent
from launcher.logs import ProcessLogs

#: A process that ends this often in a row before it has become ready ends everything.
MAX_FAILED_STARTS = 5
#: Pause before a start again: doubles with each failed one, from the first to the second. Seconds.
_PAUSES = (0.5, 8.0)
#: How often the processes are looked at. Seconds.
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class ProcessSpec:
    """One process to keep running."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    folder: Path
    #: Tells whether it works, given the number of seconds since its start. Called from the supervisor's thread,
    #: must answer within a second.
    is_ready: Callable[[float], bool]
    #: How long it may take to end when it is told to stop. Seconds.
    grace: float


@dataclass
class _Running:
    spec: ProcessSpec
    popen: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    ready: bool = False
    failed_starts: int = 0
    #: When it is due to be started (``time.monotonic``).
    due: float = field(default_factory=time.monotonic)


class Supervisor:
    """Keeps processes running until :meth:`stop`, or until one cannot be kept."""

    def __init__(
        self,
        specs: list[ProcessSpec],
        logs: ProcessLogs,
        on_ready: Callable[[], None],
        on_trouble: Callable[[str], None],
    ) -> None:
        """``on_ready`` is called once, when all are ready for the first time; ``on_trouble`` with what went wrong."""
        self._processes = [_Running(spec) for spec in specs]
        self._logs = logs
        self._on_ready = on_ready
        self._on_trouble = on_trouble
        # A plain flag: an event is not safe to set in a signal handler of the thread that waits for it.
        self._stopping = False
        #: Name of the process that could not be kept running; None while all can.
        self.given_up: str | None = None

    @property
    def pids(self) -> dict[str, int]:
        """Name -> pid of what runs now."""
        return {p.spec.name: p.popen.pid for p in self._processes if p.popen is not None}

    def stop(self) -> None:
        """Let :meth:`run` end everything; may be called from a signal handler."""
        self._stopping = True

    def run(self) -> None:
        """Start and watch until :meth:`stop`, or until a process is given up; then end everything, in reverse order."""
        announced = False
        try:
            while not self._stopping and self.given_up is None:
                for process in self._processes:
                    self._look_at(process)
                if not announced and all(process.ready for process in self._processes):
                    announced = True
                    self._on_ready()
                time.sleep(_POLL_SECONDS)
        finally:
            self._end_all()

    def _look_at(self, process: _Running) -> None:
        if process.popen is None:
            if time.monotonic() >= process.due:
                self._start(process)
            return
        status = process.popen.poll()
        if status is not None:
            self._on_end(process, status)
        elif not process.ready and process.spec.is_ready(time.monotonic() - process.started):
            process.ready, process.failed_starts = True, 0
            self._logs.note(f"{process.spec.name} is ready (pid={process.popen.pid})")

    def _start(self, process: _Running) -> None:
        spec = process.spec
        parent = os.getpid()
        with self._logs.open(spec.name) as output:
            process.popen = subprocess.Popen(
                spec.command,
                env=dict(spec.environment),
                cwd=spec.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Runs in the child, where this process has no thread that could hold a lock it needs.
                preexec_fn=lambda: die_with_parent(parent=parent),
            )
        process.started, process.ready = time.monotonic(), False
        self._logs.note(f"{spec.name} started (pid={process.popen.pid})")

    def _on_end(self, process: _Running, status: int) -> None:
        assert process.popen is not None
        name = process.spec.name
        _kill_group(process.popen.pid)
        process.popen = None
        words = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        if process.ready:
            process.due = time.monotonic()
            self._tell(f"{name} ended ({words}), starting it again")
            return
        process.failed_starts += 1
        if process.failed_starts >= MAX_FAILED_STARTS:
            self.given_up = name
            self._tell(f"{name} ended ({words}) before it was ready, {MAX_FAILED_STARTS} times in a row")
            return
        pause = min(_PAUSES[0] * 2 ** (process.failed_starts - 1), _PAUSES[1])
        process.due = time.monotonic() + pause
        count = f"{process.failed_starts} of {MAX_FAILED_STARTS}"
        self._tell(f"{name} ended ({words}) before it was ready ({count}), starting it again in {pause:g} s")

    def _tell(self, words: str) -> None:
        self._logs.note(words)
        self._on_trouble(words)

    def _end_all(self) -> None:
        """End everything; the first to be started last, because the others need it to end well."""
        first, *others = self._processes
        self._end(others)
        self._end([first])

    def _end(self, processes: list[_Running]) -> None:
        running = [(p.popen, p.spec.grace) for p in processes if p.popen is not None]
        for popen, _ in running:
            popen.terminate()
        begun = time.monotonic()
        for popen, grace in running:
            try:
                popen.wait(timeout=max(0.1, begun + grace - time.monotonic()))
            except subprocess.TimeoutExpired:
                popen.kill()
                popen.wait()
            _kill_group(popen.pid)


def _kill_group(pid: int) -> None:
    """Kill what is left of a process' group."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        # Nothing is left; or (macOS) only zombies are.
        return

"""The trainer as a child process: started, listened to, stopped."""

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from settings import ROOT, Settings

log = logging.getLogger(__name__)

#: Name of the trainer's log in the job's folder.
LOG_NAME = "trainer.log"
SPEC_NAME = "spec.json"


class TrainerProcess:
    """One run of ``python -m engines.trainer``. Belongs to the thread that made it, which must live as long:
    the child dies with it."""

    def __init__(self, settings: Settings, work_dir: Path) -> None:
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        with (work_dir / LOG_NAME).open("ab") as output:
            self._popen = subprocess.Popen(
                [*_command(settings), str(work_dir / SPEC_NAME)],
                stdout=subprocess.PIPE,
                stderr=output,
                cwd=ROOT,
                env={**_without_secrets(os.environ), "PYTHONPATH": str(ROOT)},
                # A group of its own, so that all of it can be killed.
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, name="trainer-output", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._popen.pid

    def next(self, timeout: float) -> dict[str, Any] | None:
        """Return the next event; None when the trainer has ended. Raises ``queue.Empty``."""
        return self._lines.get(timeout=timeout)

    def stop(self) -> None:
        """Ask it to save a checkpoint and leave."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End all of it now."""
        self._signal(signal.SIGKILL)

    def wait(self) -> int:
        """Wait for its end, killing what still lives after ten seconds; return the exit status."""
        try:
            status = self._popen.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.kill()
            status = self._popen.wait()
        # Helpers of the trainer may outlive it.
        self._signal(signal.SIGKILL)
        self._reader.join(timeout=5)
        if self._popen.stdout is not None:
            self._popen.stdout.close()
        return status

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._popen.pid, number)
        except ProcessLookupError:
            log.debug("The trainer has ended already")

    def _read(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                log.warning("Not a line of the trainer's protocol: %r", line[:200])
                continue
            self._lines.put(event)
        self._lines.put(None)


def _without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """A trainer needs neither keys nor databases: its specification is all that it reads."""
    names = ("CY_LLM_", "REDIS_URL", "DATABASE_URL", "GATEWAY_API_TOKEN")
    return {name: value for name, value in environment.items() if not name.startswith(names)}


def _command(settings: Settings) -> list[str]:
    if settings.train_processes > 1:
        number = str(settings.train_processes)
        launch = ["-m", "accelerate.commands.launch", "--num_processes", number, "--num_machines", "1"]
        return [
            sys.executable,
            *launch,
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
            "-m",
            "engines.training.trainer",
        ]
    return [sys.executable, "-m", "engines.training.trainer"]

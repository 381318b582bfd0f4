"""``bin/serve`` itself (behind its installing), as a process."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from settings import ROOT
from testing.stack import free_port
from testing.waiting import until

LAUNCHER = (sys.executable, "-P", "-m", "launcher.serve")


class Served:
    """A running launcher, and what it wrote."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.process = process
        self.folder = folder

    @property
    def output(self) -> str:
        return (self.folder / "output.txt").read_text()

    @property
    def notes(self) -> str:
        path = self.folder / "var" / "log" / "supervisor.log"
        return path.read_text() if path.exists() else ""

    def pids(self, name: str) -> list[int]:
        return [int(pid) for pid in re.findall(rf"{name} started \(pid=(\d+)\)", self.notes)]

    def wait_for_banner(self, seconds: float = 60) -> None:
        def banner() -> bool:
            assert self.process.poll() is None, self.output
            return "Ctrl-C" in self.output

        until(banner, seconds, "the banner is printed")

    @property
    def key(self) -> str:
        found = re.search(r"Key +(\S+)", self.output)
        assert found is not None, self.output
        return found.group(1)

    @property
    def curl(self) -> str:
        line = re.search(r"^curl.*?^  -d '.*?'$", self.output, re.MULTILINE | re.DOTALL)
        assert line is not None
        return line.group(0)

    def answer(self) -> str:
        done = subprocess.run(["bash", "-c", self.curl], capture_output=True, text=True, timeout=30)
        return done.stdout.rstrip()

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)


@contextmanager
def serving(
    folder: Path, command: Sequence[str] = (), cwd: Path = ROOT, before: Sequence[str] = (), **env: str
) -> Iterator[Served]:
    """Run the launcher on the fake engine in ``folder``; ``before`` is put before its ``command``."""
    folder.mkdir(exist_ok=True)
    config = folder / "config.json"
    if not config.exists():
        config.write_text(json.dumps({"demo": {"model_path": "none", "engine": "fake"}}))
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("CY_LLM_", "REDIS", "DATABASE"))}
    settings = {"CY_LLM_VAR": str(folder / "var"), "CY_LLM_CONFIG": str(config)}
    with (folder / "output.txt").open("wb") as file:
        process = subprocess.Popen(
            [*before, *(command or LAUNCHER)],
            cwd=cwd,
            env={**keep, "PYTHONPATH": str(ROOT), **settings, **env},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Served(process, folder)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def ports() -> dict[str, str]:
    names = ("CY_LLM_PORT", "CY_LLM_OPENAI_PORT", "CY_LLM_GRPC_PORT")
    return {name: str(free_port()) for name in names}

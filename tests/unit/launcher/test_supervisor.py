"""Processes that end are started again; what cannot be kept ends everything; nothing is left behind."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from launcher import supervisor
from launcher.logs import ProcessLogs
from launcher.supervisor import MAX_FAILED_STARTS, ProcessSpec, Supervisor
from settings import ROOT
from testing.waiting import until

#: A process with a child of its own; both ignore SIGHUP.
FAMILY = "import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)"


def spec(name: str, code: str, is_ready: Callable[[float], bool] = lambda elapsed: True) -> ProcessSpec:
    return ProcessSpec(name, [sys.executable, "-c", code], {"PYTHONPATH": str(ROOT)}, ROOT, is_ready, grace=5)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False


def group(pid: int) -> list[int]:
    """The processes of a group, by their own word."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "stat").read_text().rsplit(") ", 1)[1].split()[2] == str(pid) and alive(int(path.name)):
                found.append(int(path.name))
        except OSError:
            continue
    return found


def test_a_killed_process_loses_its_children_and_comes_back(tmp_path: Path) -> None:
    ready, log = threading.Event(), tmp_path / "supervisor.log"
    subject = Supervisor([spec("a", FAMILY)], ProcessLogs(tmp_path), ready.set, print)
    seen: list[list[int]] = []

    def said() -> str:
        # Its process may run before the first line is written.
        return log.read_text() if log.exists() else ""

    def disturb() -> None:
        for _ in range(3):
            pid = until(lambda: subject.pids.get("a"), 10, "it runs")
            until(lambda p=pid: f"a is ready (pid={p})" in said(), 10, "it is ready")
            family = until(lambda p=pid: g if len(g := group(p)) == 2 else None, 10, "it has a child")
            seen.append(family)
            os.kill(pid, signal.SIGKILL)
            until(lambda f=family: not any(map(alive, f)), 2, "both are gone")
            until(lambda p=pid: subject.pids.get("a") not in (None, p), 10, "it is started again")
        subject.stop()

    thread = threading.Thread(target=disturb)
    thread.start()
    subject.run()
    thread.join(30)
    assert len(seen) == 3
    assert ready.is_set()
    assert subject.given_up is None
    assert not any(map(alive, [pid for family in seen for pid in family]))
    assert said().count("starting it again") == 3


def test_a_process_that_never_gets_ready_ends_everything(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(supervisor, "_PAUSES", (0.01, 0.02))
    failing = spec("bad", "print('no such model'); raise SystemExit(3)", lambda elapsed: False)
    troubles: list[str] = []
    subject = Supervisor([spec("good", FAMILY), failing], ProcessLogs(tmp_path), lambda: None, troubles.append)
    subject.run()
    assert subject.given_up == "bad"
    notes = (tmp_path / "supervisor.log").read_text()
    assert notes.count("bad started") == MAX_FAILED_STARTS
    assert len(troubles) == MAX_FAILED_STARTS
    assert "bad ended (status 3) before it was ready (1 of 5)" in troubles[0]
    assert ProcessLogs(tmp_path).tail("bad").count("no such model") == MAX_FAILED_STARTS
    assert subject.pids == {"good": subject.pids["good"]}
    assert not alive(subject.pids["good"])


def test_an_end_after_it_was_ready_does_not_count(tmp_path: Path) -> None:
    subject = Supervisor([spec("short", "import time; time.sleep(0.4)")], ProcessLogs(tmp_path), lambda: None, print)
    notes = tmp_path / "supervisor.log"

    def stop_after_many() -> None:
        until(lambda: notes.exists() and notes.read_text().count("short started") > MAX_FAILED_STARTS + 1, 20, "many")
        subject.stop()

    thread = threading.Thread(target=stop_after_many)
    thread.start()
    subject.run()
    thread.join(20)
    assert subject.given_up is None

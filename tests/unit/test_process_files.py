"""The numbers of processes that come and go."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from settings import ROOT
from telemetry import process_files

#: Counts, observes and sets a gauge in a process of its own; its argument is how often.
_PROCESS = """
import os, sys
from prometheus_client import Counter, Gauge, Histogram
counted = Counter("a_thing", "Things.", ["kind"])
seen = Histogram("a_time_seconds", "Times.", buckets=(1, 2))
now = Gauge("a_level", "Level.", multiprocess_mode="livesum")
now.set(5)
for number in range(int(sys.argv[1])):
    counted.labels("x").inc()
    seen.observe(number)
print(os.getpid())
"""
_RENDER = "from telemetry.exposition import of_this_program, render; print(render('', of_this_program())[0].decode())"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(process_files.VARIABLE, "")
    monkeypatch.setattr(process_files.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(process_files.tempfile, "tempdir", str(tmp_path))
    return process_files.make_folder()


def run(folder: Path, code: str, *arguments: str) -> str:
    env = {**os.environ, process_files.VARIABLE: str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=env, cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


def numbers(folder: Path) -> dict[str, float]:
    lines = [line for line in run(folder, _RENDER).splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_what_ended_processes_counted_stays_and_their_levels_go(folder: Path) -> None:
    first, second = int(run(folder, _PROCESS, "3")), int(run(folder, _PROCESS, "4"))
    before = numbers(folder)
    assert before['a_thing_total{kind="x"}'] == 7
    assert before["a_level"] == 10
    process_files.retire(folder, first)
    after = numbers(folder)
    assert after["a_level"] == 5
    process_files.retire(folder, second)
    last = numbers(folder)
    assert "a_level" not in last
    for found in (after, last):
        assert {name: value for name, value in found.items() if name != "a_level"} == {
            name: value for name, value in before.items() if name != "a_level"
        }


def test_the_number_of_files_stays(folder: Path) -> None:
    for _ in range(5):
        process_files.retire(folder, int(run(folder, _PROCESS, "2")))
    assert sorted(path.name for path in folder.glob("*.db")) == ["counter_0.db", "histogram_0.db"]
    assert numbers(folder)['a_thing_total{kind="x"}'] == 10


def test_a_process_that_counted_nothing(folder: Path) -> None:
    process_files.retire(folder, 123456)
    assert list(folder.glob("*.db")) == []


def test_folders_of_killed_masters_are_removed_and_no_others(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    ended.wait()
    left = tmp_path / f"cy-llm-metrics-{ended.pid}-abc"
    of_another = tmp_path / f"cy-llm-metrics-{os.getppid()}-abc"
    for each in (left, of_another):
        each.mkdir()
    monkeypatch.setenv(process_files.VARIABLE, "")
    other = process_files.make_folder()
    assert not left.exists()
    assert of_another.exists()
    assert folder.exists()
    assert other != folder
    # A master that reads its configuration anew keeps its own.
    assert process_files.make_folder() == other
    process_files.remove_folder(other)
    assert not other.exists()

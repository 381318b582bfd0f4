"""``python -m bench.rolling_upgrade DIR``: from another checkout (the commit before) to this one, while it serves.

Starts everything from DIR, 32 streams at a time and a training running; then replaces the processes one
by one by this checkout's: database, a second worker, the first worker, the training worker, gRPC, the
front door. Streams are compared with the undisturbed text, character by character. Prints what was lost.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx

from bench.faults.training import DEMO, folders
from settings import ROOT
from store.sql import db
from testing.faults.client import Client, Outcome
from testing.faults.rounds import bodies
from testing.stack import Process, Stack
from testing.waiting import until

STREAMS = 32
PARAMS = {"epochs": 60, "learningRate": 2e-3, "saveSteps": 20, "loggingSteps": 10, "loraRank": 16}


class Load:
    """Clients that ask again and again until :meth:`end`; each takes up what it was cut off from."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._over = threading.Event()
        self.outcomes: list[tuple[int, Outcome]] = []
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(STREAMS)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        while not self._over.is_set():
            outcome = Client(self._stack, bodies(STREAMS)[number]).run()
            with self._lock:
                self.outcomes.append((number, outcome))

    @property
    def finished(self) -> int:
        with self._lock:
            return len(self.outcomes)

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(120)


def replace(stack: Stack, old: Process) -> None:
    old.signal(signal.SIGTERM)
    old.wait(90)


def start_training(stack: Stack) -> str:
    with stack.http() as http:
        body = {"baseModel": "demo", "outputDir": "upgrade", "datasetPath": "train.jsonl", "hyperParams": PARAMS}
        return str(http.post("/training/start", json=body).raise_for_status().json()["jobId"])


def status(stack: Stack, job_id: str) -> dict[str, object]:
    try:
        with stack.http() as http:
            found: dict[str, object] = http.get(f"/training/status/{job_id}").json()
            return found
    except httpx.HTTPError:
        return {"status": "unknown"}


def upgrade(stack: Stack, old: Path) -> int:
    stack.root = old
    workers = {"old": stack.start_worker("a", ["--models", "demo"], seconds=120)}
    trainer, web, rpc = stack.start_trainer(), stack.start_web(), stack.start_grpc()
    expected = [Client(stack, body).run().text for body in bodies(STREAMS)]
    job_id = start_training(stack)
    load = Load(stack)
    begun = time.monotonic()

    def step(words: str) -> None:
        print(f"{time.monotonic() - begun:6.1f} s  {words}; {load.finished} streams so far", flush=True)

    until(lambda: load.finished >= 5, 120, "streams run")
    step("the database is migrated")
    stack.root = ROOT
    db.migrate(stack.database_url)
    step("a worker of the new version joins")
    stack.start_worker("b", ["--models", "demo"], seconds=180)
    step("the old worker is told to leave")
    replace(stack, workers["old"])
    step("the training worker is replaced")
    replace(stack, trainer)
    stack.start_trainer("train-new")
    step("gRPC is replaced")
    replace(stack, rpc)
    stack.start_grpc()
    step("the front door is replaced")
    replace(stack, web)
    stack.start_web()
    seen = load.finished
    until(lambda: load.finished >= seen + STREAMS, 180, "the new version serves")
    load.end()
    step("the load has ended")
    until(lambda: status(stack, job_id)["status"] in ("completed", "failed"), 300, "the training has ended")
    outcomes = load.outcomes
    exact = sum(outcome.done and outcome.text == expected[number] for number, outcome in outcomes)
    lost = sum(not outcome.done for _, outcome in outcomes)
    resumed = sum(outcome.resumed for _, outcome in outcomes)
    longest = max(outcome.longest_pause for _, outcome in outcomes)
    print(
        f"\nstreams {len(outcomes)}, exact {exact}, lost {lost}, resumed {resumed} times, longest pause {longest:.1f} s"
    )
    for _, outcome in outcomes:
        if outcome.error:
            print(f"  {outcome.error}")
    print(f"training: {status(stack, job_id)['status']}")
    return 0 if exact == len(outcomes) and status(stack, job_id)["status"] == "completed" else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.rolling_upgrade", description=__doc__)
    parser.add_argument("old", type=Path, help="a checkout of the version before")
    old = parser.parse_args().old.resolve()
    with tempfile.TemporaryDirectory(prefix="cy-llm-upgrade-") as name:
        folder = Path(name)
        env = {
            **folders(folder),
            "CY_LLM_WEB_THREADS": "128",
            "CY_LLM_DRAIN_SECONDS": "5",
            # Two engines and a trainer on few cores: threads that spin would keep the others from running.
            "OMP_NUM_THREADS": "1",
        }
        stack = Stack(folder / "stack", {"demo": DEMO}, env=env, migrate=False)
        try:
            migrate_as(old, stack)
            return upgrade(stack, old)
        finally:
            stack.close()


def migrate_as(old: Path, stack: Stack) -> None:
    """Bring the database to the old version's schema."""
    code = (
        "import sys\ntry:\n from store.sql import db\nexcept ImportError:\n from store import db\n"
        f"db.migrate({stack.database_url!r})"
    )
    env = {**os.environ, "PYTHONPATH": str(old)}
    subprocess.run([sys.executable, "-c", code], cwd=old, env=env, check=True)


if __name__ == "__main__":
    sys.exit(main())

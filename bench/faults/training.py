"""``python -m bench.faults training [--rounds 10]``: trainings that are struck at random moments.

Each job is struck once: its trainer is killed, or its whole worker (a new one is started, as a
process manager would). Prints for each kind how many jobs completed, whether any step was
trained twice behind a checkpoint, whether two trainers of a job ever lived at once, whether the
last loss equals the undisturbed job's, and whether the adapter answers as its does.
"""

import argparse
import json
import os
import platform
import random
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from settings import ROOT
from testing.sse import events
from testing.stack import Process, Stack
from testing.waiting import until

PARAMS = {"epochs": 40, "learningRate": 2e-3, "saveSteps": 20, "loggingSteps": 10, "loraRank": 16}
QUESTION = "Who are you?"
#: The demo model, as one that is trained while it serves.
DEMO = {
    "model_path": str(ROOT / "models" / "demo"),
    "max_model_len": 2048,
    "kv_cache_memory_bytes": 2**27,
    "enforce_eager": True,
    "enable_lora": True,
}


def folders(folder: Path) -> dict[str, str]:
    """Return the variables that keep a training's files in ``folder``."""
    return {
        "CY_LLM_DATA_ROOTS": str(ROOT / "demo"),
        "CY_LLM_OUTPUTS_ROOT": str(folder / "outputs"),
        "CY_LLM_ADAPTERS_ROOT": str(folder / "adapters"),
    }


class Census(threading.Thread):
    """Looks, all the time, how many trainers of one job live."""

    def __init__(self, job_id: str) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self._job = job_id
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._over.wait(0.02):
            self.most = max(self.most, len(trainers(self._job)))

    def end(self) -> int:
        self._over.set()
        self.join()
        return self.most


def trainers(job_id: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_text()
        except OSError:
            continue
        if "engines.training.trainer" in command and job_id in command:
            found.append(int(path.name))
    return found


class Round:
    """One job, from its start to its adapter."""

    def __init__(self, http: httpx.Client, name: str) -> None:
        self._http = http
        body = {"baseModel": "demo", "outputDir": name, "datasetPath": "train.jsonl", "hyperParams": PARAMS}
        response = http.post("/training/start", json=body).raise_for_status()
        self.job_id = str(response.json()["jobId"])
        self.census = Census(self.job_id)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self._http.get(f"/training/status/{self.job_id}").json()
        return found

    def wait_for_step(self, step: int) -> None:
        until(lambda: self.status()["progress"]["currentStep"] >= step, 60, f"{self.job_id} is at step {step}")

    def end(self) -> dict[str, Any]:
        """Wait for the end; return what the table needs."""
        done = until(
            lambda: found if (found := self.status())["status"] in ("completed", "failed") else None,
            120,
            f"{self.job_id} has ended",
        )
        with self._http.stream("GET", f"/training/{self.job_id}/events") as response:
            seen = [event for event in events(response) if event.data.startswith("{")]
        adapter = done.get("result", {}).get("adapter")
        return {
            "completed": done["status"] == "completed",
            "repeated": repeated_steps([(event.name, event.json()["step"]) for event in seen]),
            "runners": self.census.end(),
            "loss": done["progress"]["loss"],
            "restarts": done["restarts"],
            "text": self._ask(adapter) if adapter else "",
        }

    def _ask(self, adapter: str) -> str:
        body = {"modelId": "demo", "prompt": QUESTION, "adapter": adapter, "generation": {"temperature": 0}}
        return str(self._http.post("/inference", json=body).raise_for_status().json()["choices"][0]["text"])


def repeated_steps(seen: list[tuple[str, int]]) -> int:
    """Steps that a start began before the newest checkpoint that had been reported."""
    saved = repeated = 0
    for kind, step in seen:
        if kind == "checkpoint":
            saved = max(saved, step)
        elif kind == "started":
            repeated += max(0, saved - step)
    return repeated


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.faults training", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args(sys.argv[2:])
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="cy-llm-training-") as name:
        folder = Path(name)
        stack = Stack(folder / "stack", {"demo": DEMO}, env=folders(folder))
        try:
            stack.start_worker("infer", ["--models", "demo"], seconds=120)
            stack.start_web()
            with stack.http() as http:
                return matrix(stack, http, arguments.rounds, rng)
        finally:
            stack.close()


def matrix(stack: Stack, http: httpx.Client, rounds: int, rng: random.Random) -> int:
    worker = [stack.start_trainer()]
    undisturbed = Round(http, "reference")
    reference = undisturbed.end()
    steps = undisturbed.status()["progress"]["totalSteps"]

    def kill_trainer(struck: Round) -> None:
        for pid in trainers(struck.job_id):
            os.kill(pid, signal.SIGKILL)

    def kill_worker(struck: Round) -> None:
        # The worker alone: its trainer must not outlive it.
        os.kill(worker[0].pid, signal.SIGKILL)
        worker[0].wait(10)
        worker[0] = restart(stack)

    print(
        f"{platform.machine()}, {os.cpu_count()} cores; {rounds} jobs a row of {steps} steps, a checkpoint every 20\n"
    )
    print("| killed | jobs | completed | steps repeated | most trainers at once | last loss equal | adapter answers |")
    print("|---|---|---|---|---|---|---|")
    whole = True
    rows: list[tuple[str, Callable[[Round], None]]] = [("trainer -9", kill_trainer), ("worker -9", kill_worker)]
    for name, inject in rows:
        found = []
        for _ in range(rounds):
            struck = Round(http, "struck")
            struck.wait_for_step(rng.randint(0, steps - 10))
            inject(struck)
            found.append(struck.end())
        whole &= print_row(name, found, reference)
    return 0 if whole else 1


def restart(stack: Stack) -> Process:
    return stack.start_trainer(f"train-{len(stack.processes)}")


def print_row(name: str, found: list[dict[str, Any]], reference: dict[str, Any]) -> bool:
    completed = sum(one["completed"] for one in found)
    repeated = sum(one["repeated"] for one in found)
    runners = max(one["runners"] for one in found)
    equal = sum(one["loss"] is not None and abs(one["loss"] - reference["loss"]) < 1e-4 for one in found)
    served = sum(one["text"] == reference["text"] != "" for one in found)
    count = len(found)
    print(f"| {name} | {count} | {completed} | {repeated} | {runners} | {equal} | {served} |", flush=True)
    for one in found:
        if not one["completed"] or one["text"] != reference["text"]:
            print(json.dumps(one, ensure_ascii=False), file=sys.stderr)
    return completed == equal == served == count and not repeated and runners == 1

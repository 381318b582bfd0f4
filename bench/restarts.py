"""``python -m bench.restarts [--rounds 10] [--only NAME]``: every process of ``bin/serve`` killed -9, on real vLLM.

For each kind of process and round: kill it, see that its children are gone within two seconds, that it
is started again by itself, and how long it takes to the next answer (an inference, a gRPC call, a
training's next step). At the end ``bin/serve`` itself is killed, and what is left is counted.
"""

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx

from settings import ROOT
from testing.processes import children, family, is_alive, name_of
from testing.stack import free_port
from testing.waiting import until
from webapp.rpc import ai_service_pb2 as pb
from webapp.rpc import ai_service_pb2_grpc as services_pb

KEY = "bench-key"
#: Longer than the demo model takes to load on a busy machine. Seconds.
_BACK_SECONDS = 120.0
_GONE_SECONDS = 2.0


@dataclass
class Tally:
    """One row of the table."""

    kills: int = 0
    restarted: int = 0
    orphans: int = 0
    back: list[float] = field(default_factory=list)

    def row(self, name: str) -> str:
        longest = f"{max(self.back):.1f} s" if self.back else "–"
        median = f"{sorted(self.back)[len(self.back) // 2]:.1f} s" if self.back else "–"
        return f"| {name} | {self.kills} | {self.restarted} | {self.orphans} | {median} | {longest} |"


class Served:
    """A running ``bin/serve`` (behind its installing) with the demo model."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ports = {name: free_port() for name in ("CY_LLM_PORT", "CY_LLM_OPENAI_PORT", "CY_LLM_GRPC_PORT")}
        settings = {
            "CY_LLM_VAR": str(folder / "var"),
            "CY_LLM_API_KEY": KEY,
            "CY_LLM_ADAPTERS_ROOT": str(folder / "adapters"),
        }
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("CY_LLM_", "REDIS", "DATABASE"))}
        with (folder / "output.txt").open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "launcher.serve"],
                cwd=ROOT,
                env={**keep, **settings, **{name: str(port) for name, port in self.ports.items()}},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until(lambda: "Ctrl-C" in (folder / "output.txt").read_text(), 240, "bin/serve is ready")

    @property
    def first_start(self) -> str:
        """How long the first start took, in the launcher's words."""
        return next(line for line in (self._folder / "output.txt").read_text().splitlines() if "ready after" in line)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['CY_LLM_PORT']}/api/v1"

    def started(self, name: str) -> list[int]:
        """Pids of a process, the newest last."""
        return [int(pid) for pid in re.findall(rf"{name} started \(pid=(\d+)\)", self._notes)]

    def is_ready(self, name: str) -> bool:
        """Whether the supervisor calls the newest start ready: an end before that counts as a failed one."""
        return f"{name} is ready (pid={self.started(name)[-1]})" in self._notes

    @property
    def _notes(self) -> str:
        return (self._folder / "var" / "log" / "supervisor.log").read_text()

    def call(self, method: str, path: str, **options: object) -> httpx.Response | None:
        try:
            return httpx.request(
                method, self.url + path, headers={"X-API-Key": KEY}, timeout=20, trust_env=False, **options
            )  # type: ignore[arg-type]
        except httpx.HTTPError:
            return None

    def answers(self) -> bool:
        body = {"modelId": "demo", "prompt": "Who are you?", "generation": {"maxNewTokens": 4, "temperature": 0}}
        answer = self.call("POST", "/inference", json=body)
        return answer is not None and answer.status_code == 200

    def rpc_answers(self) -> bool:
        with grpc.insecure_channel(f"127.0.0.1:{self.ports['CY_LLM_GRPC_PORT']}") as channel:
            request = pb.StreamPredictRequest(model_id="demo", prompt="Who are you?")
            request.generation.max_new_tokens = 4
            try:
                found = list(
                    services_pb.AIServiceStub(channel).StreamPredict(
                        request, metadata=(("x-api-key", KEY),), timeout=20
                    )
                )
            except grpc.RpcError:
                return False
        return bool(found) and found[-1].end_of_stream


def kill_and_wait(served: Served, tally: Tally, victim: int, name: str, back: Callable[[], bool]) -> None:
    """Kill a process and wait until all is well again."""
    until(lambda: served.is_ready(name), _BACK_SECONDS, f"{name} is ready")
    members = family(victim)
    starts = served.started(name)
    # A process that its parent starts again (a gunicorn worker, a trainer) is no start of the supervisor's.
    is_supervised = victim == starts[-1]
    os.kill(victim, signal.SIGKILL)
    struck = time.monotonic()
    tally.kills += 1
    while time.monotonic() - struck < _GONE_SECONDS and any(map(is_alive, members)):
        time.sleep(0.02)
    tally.orphans += sum(map(is_alive, members))

    def is_back() -> bool:
        return (not is_supervised or len(served.started(name)) > len(starts)) and back()

    until(is_back, _BACK_SECONDS, f"{name} is back")
    tally.back.append(time.monotonic() - struck)
    tally.restarted += 1


def engine_core(served: Served) -> int:
    def find() -> int | None:
        try:
            return next((p for p in children(served.started("gpu-infer")[-1]) if "EngineCore" in name_of(p)), None)
        except OSError:
            return None

    return until(find, _BACK_SECONDS, "there is an engine core")


def start_training(served: Served) -> str:
    params = {"epochs": 2000, "saveSteps": 20, "loggingSteps": 5, "loraRank": 8}
    body = {"baseModel": "demo", "outputDir": "kills", "datasetPath": "train.jsonl", "hyperParams": params}
    started = served.call("POST", "/training/start", json=body)
    assert started is not None
    return str(started.json()["jobId"])


def trainer(served: Served) -> int:
    def find() -> int | None:
        try:
            found = children(served.started("gpu-train")[-1])
            return next((pid for pid in found if "engines.training.trainer" in name_of(pid)), None)
        except OSError:
            return None

    return until(find, _BACK_SECONDS, "there is a trainer")


def trains_on(served: Served, job_id: str) -> Callable[[], bool]:
    """Tell whether the job has taken a step since now, in a run that has begun since now."""

    def status() -> tuple[str, int, int]:
        answer = served.call("GET", f"/training/status/{job_id}")
        found = answer.json() if answer is not None else {}
        return found.get("status", ""), found.get("restarts", 0), found.get("progress", {}).get("currentStep", 0)

    _, restarts, step = status()

    def moved() -> bool:
        state, again, now = status()
        return state == "running" and again > restarts and now > step

    return moved


def rounds(served: Served, count: int, only: list[str]) -> bool:
    whole = True
    newest = lambda name: served.started(name)[-1]  # noqa: E731
    plain: dict[str, tuple[Callable[[], int], str, Callable[[], bool]]] = {
        "web (gunicorn's master)": (lambda: newest("web"), "web", served.answers),
        "web (a worker)": (lambda: children(newest("web"))[0], "web", served.answers),
        "grpc": (lambda: newest("grpc"), "grpc", served.rpc_answers),
        "gpu-infer": (lambda: newest("gpu-infer"), "gpu-infer", served.answers),
        "its engine core": (lambda: engine_core(served), "gpu-infer", served.answers),
        "redis": (lambda: newest("redis"), "redis", served.answers),
        "cpu-work": (lambda: newest("cpu-work"), "cpu-work", served.answers),
    }
    for name, (victim, process, back) in plain.items():
        if only and name not in only:
            continue
        tally = Tally()
        for _ in range(count):
            until(back, _BACK_SECONDS, f"all is well before {name} is killed")
            kill_and_wait(served, tally, victim(), process, back)
        print(tally.row(name), flush=True)
        whole &= tally.restarted == count and not tally.orphans
    victims = {"gpu-train": lambda: newest("gpu-train"), "its trainer": lambda: trainer(served)}
    return whole & training_rounds(served, count, {k: v for k, v in victims.items() if not only or k in only})


def training_rounds(served: Served, count: int, victims: dict[str, Callable[[], int]]) -> bool:
    whole = True
    for name, victim in victims.items():
        job_id = start_training(served)
        tally = Tally()
        for _ in range(count):
            until(lambda job=job_id: has_stepped(served, job), _BACK_SECONDS, "the training steps")
            back = trains_on(served, job_id)
            if name == "gpu-train":
                trainer(served)
            kill_and_wait(served, tally, victim(), "gpu-train", back)
            if tally.kills % 4 == 0:
                # A job is given up after five losses.
                served.call("POST", f"/training/cancel/{job_id}")
                job_id = start_training(served)
        served.call("POST", f"/training/cancel/{job_id}")
        print(tally.row(name), flush=True)
        whole &= tally.restarted == count and not tally.orphans
    return whole


def has_stepped(served: Served, job_id: str) -> bool:
    answer = served.call("GET", f"/training/status/{job_id}")
    found = answer.json() if answer is not None else {}
    return found.get("status") == "running" and found["progress"]["currentStep"] > 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.restarts", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", action="append", default=[], help="only this row")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cy-llm-restarts-") as name:
        served = Served(Path(name))
        try:
            print(f"{platform.machine()}, {os.cpu_count()} cores, real vLLM (demo model); kill -9")
            print(f"first start: {served.first_start}\n")
            print("| killed | times | restarted | orphans after 2 s | next answer, median | longest |")
            print("|---|---|---|---|---|---|", flush=True)
            whole = rounds(served, arguments.rounds, arguments.only)
            health = served.call("GET", "/health/details")
            if health is not None:
                workers = health.json()["components"]["coordinator"]["details"].get("workers")
                print(f"\n/health/details afterwards: workers {json.dumps(workers)}")
            everything = family(served.process.pid)
            os.kill(served.process.pid, signal.SIGKILL)
            served.process.wait(10)
            time.sleep(_GONE_SECONDS)
            left = [pid for pid in everything if is_alive(pid)]
            print(f"bin/serve itself: {len(everything)} processes before, {len(left)} left after {_GONE_SECONDS:g} s")
            return 0 if whole and not left else 1
        finally:
            if served.process.poll() is None:
                served.process.send_signal(signal.SIGINT)
                served.process.wait(60)


if __name__ == "__main__":
    sys.exit(main())

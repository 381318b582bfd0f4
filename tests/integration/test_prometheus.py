"""The shipped files with a real Prometheus: every panel has data, every alert that a fault here can cause fires."""

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from settings import ROOT
from store.redis import keys as redis_keys
from store.sql import db
from store.sql.jobs import JobStatus
from store.sql.tables import TrainingJob
from testing.stack import KEY, Process, Stack, free_port
from testing.waiting import until
from tests.conftest import FAKE_MODELS

DEPLOY = ROOT / "deploy"
TOKEN = "scrape-me-0123456789"
pytestmark = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="Prometheus is not installed (Debian: apt-get install prometheus)",
)
#: Metrics that only a real vLLM has.
_OF_VLLM = "vllm:"


def test_promtool_finds_no_fault(tmp_path: Path) -> None:
    shutil.copytree(DEPLOY / "prometheus", tmp_path / "p")
    (tmp_path / "p" / "cy-llm-token").write_text(TOKEN)
    for command in (
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts.test.yml"],
    ):
        done = subprocess.run(["promtool", *command], cwd=tmp_path / "p", capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


class Monitored:
    """A system and the Prometheus that watches it by the shipped files."""

    def __init__(self, folder: Path) -> None:
        settings = {"CY_LLM_METRICS_TOKEN": TOKEN, "CY_LLM_METRICS_PORT": "20564"}
        self.stack = Stack(folder / "stack", FAKE_MODELS, env=settings)
        self.workers = {name: self.stack.start_worker(name, ["--models", "fake,slow"]) for name in ("w1", "w2")}
        self.web = self.stack.start_web()
        self.port = free_port()
        self.process = self._start_prometheus(folder / "prometheus")

    def _start_prometheus(self, folder: Path) -> Process:
        shutil.copytree(DEPLOY / "prometheus", folder)
        (folder / "cy-llm-token").write_text(TOKEN)
        config, rules = folder / "prometheus.yml", folder / "alerts.yml"
        text = config.read_text().replace("localhost:8080", f"127.0.0.1:{self.stack.port}")
        config.write_text(re.sub(r"interval: 15s", "interval: 1s", text))
        # Nobody waits minutes here for what has to last some.
        rules.write_text(re.sub(r"for: \d+m", "for: 1s", rules.read_text()))
        command = [
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]
        process = self.stack.run("prometheus", command)
        until(self._is_ready, 30, "Prometheus is ready")
        return process

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/-/ready", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def get(self, path: str, **params: str) -> Any:
        with httpx.Client(trust_env=False, timeout=10) as http:
            answer = http.get(f"http://127.0.0.1:{self.port}/api/v1/{path}", params=params)
        return answer.json()["data"]

    def query(self, expression: str) -> list[Any]:
        found: list[Any] = self.get("query", query=expression)["result"]
        return found

    def firing(self) -> set[str]:
        return {alert["labels"]["alertname"] for alert in self.get("alerts")["alerts"] if alert["state"] == "firing"}

    def targets(self) -> dict[str, str]:
        found = self.get("targets", state="active")["activeTargets"]
        return {target["scrapeUrl"]: target["health"] for target in found}

    def traffic(self, requests: int = 20) -> None:
        body = {"modelId": "fake", "prompt": "one two", "generation": {"maxNewTokens": 10}}

        def one(number: int) -> None:
            with self.stack.http() as http:
                if number % 2:
                    http.post("/inference/stream", json=body)
                else:
                    http.post("/inference", json=body)

        with ThreadPoolExecutor(5) as pool:
            list(pool.map(one, range(requests)))


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    made = Monitored(tmp_path_factory.mktemp("monitored"))
    try:
        yield made
    finally:
        made.stack.close()


def expressions() -> list[tuple[str, str]]:
    dashboard = json.loads((DEPLOY / "grafana" / "cy-llm.json").read_text())
    return [
        (panel["title"], target["expr"].replace("$__rate_interval", "30s"))
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    ]


@pytest.mark.full
def test_the_shipped_configuration_finds_every_process(monitored: Monitored) -> None:
    def all_up() -> bool:
        found = monitored.targets()
        return len(found) == 3 and set(found.values()) == {"up"}

    try:
        until(all_up, 60, "the front door and both workers are scraped")
    except AssertionError as error:
        raise AssertionError(monitored.get("targets", state="active")) from error


@pytest.mark.full
def test_every_panel_has_data(monitored: Monitored) -> None:
    missing = dict(expressions())
    assert len(expressions()) > 25
    ends = time.monotonic() + 60
    while missing and time.monotonic() < ends:
        monitored.traffic()
        missing = {
            title: expression
            for title, expression in expressions()
            if _OF_VLLM not in expression and not monitored.query(expression)
        }
    assert missing == {}


@pytest.mark.full
def test_nothing_fires_while_all_is_well(monitored: Monitored) -> None:
    until(lambda: monitored.get("rules")["groups"], 20, "the rules are loaded")
    assert monitored.firing() == set()


def in_flight(stack: Stack, name: str) -> int:
    found = stack.find(name)
    return found.in_flight if found else 0


@pytest.mark.full
def test_alerts_fire_on_their_faults_and_go_out(monitored: Monitored) -> None:
    stack = monitored.stack
    client = stack.client

    def fires(name: str, seconds: float = 40) -> None:
        until(lambda: name in monitored.firing(), seconds, f"{name} fires")

    def goes_out(name: str, seconds: float = 60) -> None:
        until(lambda: name not in monitored.firing(), seconds, f"{name} goes out")

    # Usage that nobody books.
    for _ in range(1100):
        client.xadd(redis_keys.bills(), {"b": "{}"})
    fires("CyLlmUsageNotBooked")
    client.delete(redis_keys.bills())
    goes_out("CyLlmUsageNotBooked")
    # A full Redis.
    client.config_set("maxmemory", int(client.info("memory")["used_memory"] * 1.05))
    fires("CyLlmRedisMemory")
    client.config_set("maxmemory", 0)
    goes_out("CyLlmRedisMemory")
    # A training that failed; compared with ten minutes ago, so that the past has to be there: promtool's test has it.
    engine = db.connect(stack.database_url)
    with db.sessions(engine).begin() as session:
        session.add(TrainingJob(id="ft-x", owner="k", status=JobStatus.FAILED.value, base_model="fake", spec={}))
    engine.dispose()
    until(lambda: monitored.query('cy_llm_training_jobs{status="failed"} == 1'), 20, "it is counted")
    # A queue that grows: its workers cannot take anything.
    body = {"modelId": "slow", "prompt": "p", "generation": {"maxNewTokens": 400}}
    with stack.http() as http, http.stream("POST", "/inference/stream", json=body) as stream:
        lines = stream.iter_lines()
        next(line for line in lines if line.startswith("data:"))
        # The worker of a stream is lost.
        busy = until(lambda: [name for name in monitored.workers if in_flight(stack, name)], 20, "a worker has it")[0]
        monitored.workers.pop(busy).signal(signal.SIGKILL)
        fires("CyLlmFailovers")
        fires("CyLlmWorkerLost")
    # All are.
    [(_, last)] = monitored.workers.items()
    last.signal(signal.SIGKILL)
    fires("CyLlmNoWorker")
    queue = next(iter(monitored.query("max by (queue) (cy_llm_queue_depth)")))["metric"]["queue"]
    client.lpush(queue, *(["x"] * 60))
    fires("CyLlmQueueGrows")
    client.delete(queue)
    goes_out("CyLlmQueueGrows")
    stack.start_worker("w3", ["--models", "fake,slow"])
    goes_out("CyLlmNoWorker")
    # The front door.
    assert KEY
    monitored.web.signal(signal.SIGKILL)
    fires("CyLlmFrontDoorDown")

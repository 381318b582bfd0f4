"""What Prometheus reads: of several processes as one, across their ends, with few labels, and not by everybody."""

import json
import os
import re
import secrets
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest
from click.testing import CliRunner

from cli.__main__ import cli
from testing.stack import KEY, Process, Stack
from testing.waiting import until
from tests.conftest import FAKE_MODELS

TOKEN = "scrape-me-0123456789"
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Front:
    """A front door of two processes, and who else there is."""

    def __init__(self, stack: Stack, web: Process) -> None:
        self.stack = stack
        self.web = web

    def scrape(self, url: str = "", **headers: str) -> Samples:
        headers = headers or {"Authorization": f"Bearer {TOKEN}"}
        answer = httpx.get(url or f"{self.stack.base}/metrics", headers=headers, timeout=10, trust_env=False)
        assert answer.status_code == 200, answer.text
        return parse(answer.text)

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples of that name that have these labels."""
        wanted = set(labels.items())
        return sum(value for (found, of), value in self.scrape().items() if found == name and wanted <= of)

    def ask(self, tokens: int = 5, model: str = "fake", key: str = KEY, **body: Any) -> httpx.Response:
        body = {"modelId": model, "prompt": "one two", "generation": {"maxNewTokens": tokens}, **body}
        with httpx.Client(trust_env=False, timeout=60) as http:
            return http.post(f"{self.stack.base}/api/v1/inference", json=body, headers={"X-API-Key": key})

    def children(self) -> list[int]:
        return sorted(child.pid for child in psutil.Process(self.web.pid).children())


def parse(text: str) -> Samples:
    found: Samples = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            match = _SAMPLE.match(line)
            assert match, line
            labels = frozenset(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or ""))
            assert (match[1], labels) not in found, line
            found[match[1], labels] = float(match[3])
    return found


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    settings = {"CY_LLM_METRICS_TOKEN": TOKEN, "CY_LLM_METRICS_PORT": "20464", "CY_LLM_REQUEST_TIMEOUT_SECONDS": "30"}
    stack = Stack(tmp_path_factory.mktemp("metrics"), FAKE_MODELS, env=settings)
    try:
        stack.start_worker("w1", ["--models", "fake,slow"])
        web = stack.start_web(CY_LLM_WEB_WORKERS="2")
        stack.start_grpc()
        yield Front(stack, web)
    finally:
        stack.close()


def test_a_request_is_counted_in_every_way(front: Front) -> None:
    native = {"endpoint": "/api/v1/inference", "model": "fake"}
    names = {
        "cy_llm_outcomes_total": {**native, "outcome": "finished"},
        "cy_llm_time_to_first_token_seconds_count": native,
        "cy_llm_request_duration_seconds_count": native,
        "cy_llm_time_per_output_token_seconds_count": native,
        "cy_llm_queue_wait_seconds_count": {"model": "fake"},
        "cy_llm_tokens_total": {"model": "fake", "kind": "completion"},
        "cy_llm_requests_total": {
            "face": "http",
            "operation": "POST /api/v1/inference",
            "model": "fake",
            "code": "",
        },
    }
    before = {name: front.value(name, **labels) for name, labels in names.items()}
    for _ in range(4):
        assert front.ask(tokens=5).status_code == 200
    gained = {name: front.value(name, **labels) - before[name] for name, labels in names.items()}
    assert gained.pop("cy_llm_tokens_total") == 20
    assert set(gained.values()) == {4.0}


def test_what_has_not_happened_yet_is_counted_from_nothing(front: Front) -> None:
    samples = front.scrape()
    for name, labels in (
        ("cy_llm_failovers_total", {"reason": "worker_lost"}),
        ("cy_llm_refused_by_limit_total", {"limit": "token_quota"}),
        ("cy_llm_resumes_total", {}),
    ):
        assert (name, frozenset(labels.items())) in samples


def test_no_counter_goes_back_when_processes_end(front: Front) -> None:
    for _ in range(10):
        front.ask()

    def counters() -> dict[Any, float]:
        return {key: value for key, value in front.scrape().items() if key[0].endswith(("_total", "_count", "_bucket"))}

    before = counters()
    old = front.children()
    assert len(old) == 2
    for pid in old:
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: pid not in front.children() and len(front.children()) == 2, 20, "it is replaced")
    until(lambda: front.ask().status_code == 200, 20, "the new ones serve")
    after = counters()
    assert all(after[key] >= value for key, value in before.items())
    # Levels of the dead are gone.
    assert front.value("cy_llm_streams") == 0


def test_labels_are_few_whatever_clients_send(front: Front) -> None:
    front.ask()
    before = set(front.scrape())
    with httpx.Client(base_url=front.stack.base, headers={"X-API-Key": KEY}, trust_env=False) as http:

        def one(number: int) -> None:
            word = secrets.token_hex(6)
            http.get(f"/nothing/{word}")
            http.request(f"X{word}", "/api/v1/inference")
            http.get(f"/api/v1/inference/gen-{word}")
            http.post("/api/v1/inference", json={"modelId": f'"{word}\\\n🦊', "prompt": "x"})
            http.post("/api/v1/inference", json={"modelId": "fake", "adapter": word, "prompt": "x"})
            http.post("/api/v1/inference", json={"modelId": "fake", "prompt": "x", "metadata": {"tenant": word}})

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, range(60)))
    new = {(name, labels) for name, labels in set(front.scrape()) - before if name == "cy_llm_requests_total"}
    assert len(new) < 12
    assert {dict(labels)["operation"] for _, labels in new} <= {
        "other",
        "POST /api/v1/inference",
        "GET /api/v1/inference/<request_id>",
    }
    text = str(front.scrape())
    for hidden in (KEY, TOKEN, "tenant"):
        assert hidden not in text


def test_who_may_read_them(front: Front) -> None:
    url = f"{front.stack.base}/metrics"
    with front.stack.http() as http:
        weak = http.post("/keys", json={"name": secrets.token_hex(4), "scopes": ["inference"]}).json()["key"]
    codes = {
        key: httpx.get(url, headers={"Authorization": f"Bearer {key}"} if key else {}, trust_env=False).status_code
        for key in ("", weak, "wrong", TOKEN, KEY)
    }
    assert codes == {"": 401, weak: 403, "wrong": 401, TOKEN: 200, KEY: 200}
    # The token opens nothing else.
    other = httpx.get(f"{front.stack.base}/api/v1/keys", headers={"X-API-Key": TOKEN}, trust_env=False)
    assert other.status_code == 401


def test_the_state_of_the_system(front: Front) -> None:
    assert front.value("cy_llm_workers", state="ready") == 1
    assert front.value("cy_llm_redis_up") == 1
    assert front.value("cy_llm_database_up") == 1
    assert front.value("cy_llm_queue_depth") == 0
    assert front.value("cy_llm_worker_capacity") > 0


def test_workers_and_grpc_show_theirs(front: Front) -> None:
    def found() -> list[dict[str, Any]]:
        answer = httpx.get(
            f"{front.stack.base}/api/v1/metrics/targets",
            headers={"Authorization": f"Bearer {TOKEN}"},
            trust_env=False,
        )
        targets: list[dict[str, Any]] = answer.json()
        return targets

    until(lambda: len(found()) == 2, 20, "both have announced themselves")
    by_kind = {each["labels"]["component"]: each for each in found()}
    assert set(by_kind) == {"worker", "grpc"}
    # One port, two processes of a host.
    assert by_kind["worker"]["targets"] != by_kind["grpc"]["targets"]
    [address] = by_kind["worker"]["targets"]
    front.ask()
    samples = front.scrape(f"http://{address}/metrics", Accept="text/plain")
    served = {
        dict(labels)["outcome"]: value
        for (name, labels), value in samples.items()
        if name == "cy_llm_worker_requests_total"
    }
    assert served["finished"] >= 1
    assert {dict(labels)["worker"] for _, labels in samples} == {by_kind["worker"]["labels"]["worker"]}
    [address] = by_kind["grpc"]["targets"]
    assert ("cy_llm_resumes_total", frozenset()) in front.scrape(f"http://{address}/metrics", Accept="text/plain")


def test_limits_and_leavers(front: Front) -> None:
    limit = {"limit": "tokens_per_minute"}
    before = front.value("cy_llm_refused_by_limit_total", **limit)
    with front.stack.http() as http:
        made = http.post("/keys", json={"name": secrets.token_hex(4), "tokensPerMinute": 50}).json()
    key = made["key"]
    assert [front.ask(tokens=20, key=key).status_code for _ in range(3)].count(429) == 2
    assert front.value("cy_llm_refused_by_limit_total", **limit) - before == 2
    left = front.value("cy_llm_disconnects_total")
    body = {"modelId": "slow", "prompt": "p", "generation": {"maxNewTokens": 200}}
    with front.stack.http() as http, http.stream("POST", "/inference/stream", json=body) as stream:
        next(line for line in stream.iter_lines() if line.startswith("data:"))
        assert front.value("cy_llm_streams") == 1
    until(lambda: front.value("cy_llm_disconnects_total") == left + 1, 10, "the client's leaving is counted")
    until(lambda: front.value("cy_llm_streams") == 0, 10, "nobody is followed")


def test_status_on_one_screen(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("CY_LLM_PORT", str(front.stack.port)),
        ("CY_LLM_OPENAI_PORT", str(front.stack.openai_port)),
        ("CY_LLM_HOST", "127.0.0.1"),
        ("CY_LLM_API_KEY", KEY),
    ):
        monkeypatch.setenv(name, value)
    front.ask()
    found = json.loads(run_status("--json"))
    assert found["redis"] is found["database"] is True
    assert found["workerStates"]["ready"] == 1
    assert [worker["name"] for worker in found["workers"]] == ["w1@test"]
    assert {"id": "fake", "status": "ready"} in found["models"]
    assert found["requests"] >= 1
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(front.ask, 40, "slow")
        until(lambda: front.value("cy_llm_streams") == 1, 10, "it runs")
        screen = run_status()
        running.result()
    assert "w1@test" in screen
    assert "1 streams" in screen
    tokens = re.search(r"([\d.]+) tokens/s", screen)
    assert tokens


def run_status(*arguments: str) -> str:
    result = CliRunner().invoke(cli, ["status", *arguments])
    assert result.exit_code == 0, result.output
    return result.output

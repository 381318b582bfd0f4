"""A key with one stream: whatever becomes of the request before, the next one passes; D04 and D21."""

import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import psutil
import pytest

from testing.sse import events
from testing.stack import Process, Stack
from testing.waiting import until
from tests.conftest import FAKE_MODELS

pytestmark = pytest.mark.full


class Lone:
    """A stack, and a key that may have one request at once."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        with stack.http() as http:
            body = {"name": secrets.token_hex(4), "streams": 1, "tokensPerMinute": 1_000_000}
            self.key: str = http.post("/keys", json=body).json()["key"]

    def http(self) -> httpx.Client:
        headers = {"X-API-Key": self.key}
        return httpx.Client(base_url=f"{self.stack.base}/api/v1", headers=headers, timeout=60, trust_env=False)

    def ask(self) -> httpx.Response:
        body = {"modelId": "fake", "prompt": "p", "generation": {"maxNewTokens": 3}}
        with self.http() as http:
            return http.post("/inference", json=body)

    @contextmanager
    def stream(self, tokens: int = 200) -> Iterator[Iterator[str]]:
        """A stream that has begun; its lines of data."""
        body = {"modelId": "slow", "prompt": "p", "generation": {"maxNewTokens": tokens}}
        with self.http() as http, http.stream("POST", "/inference/stream", json=body) as response:
            lines = (event.data for event in events(response) if event.data)
            next(lines)
            yield lines

    def passes(self, seconds: float, after: str) -> None:
        until(lambda: self.ask().status_code == 200, seconds, f"a request passes after {after}")
        with self.http() as http:
            [use] = http.get("/key").json()["used"]
        assert use["reserved"] == 0, after


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("turns"), FAKE_MODELS, env={"CY_LLM_KEEPALIVE_SECONDS": "0.5"})
    try:
        for name in ("w1", "w2"):
            stack.start_worker(name, ["--models", "fake,slow"])
        stack.start_web()
        yield stack
    finally:
        stack.close()


@pytest.fixture
def lone(stack: Stack) -> Lone:
    return Lone(stack)


def test_while_one_runs_another_is_refused(lone: Lone) -> None:
    with lone.stream():
        refused = lone.ask()
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
    lone.passes(10, "a stream that its client cut")


@pytest.mark.parametrize("body", ['{"modelId": "unknown", "prompt": "p"}', "{broken", '{"modelId": "fake"}'])
def test_a_request_that_is_refused(lone: Lone, body: str) -> None:
    with lone.http() as http:
        answer = http.post("/inference/stream", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 404)
    assert lone.ask().status_code == 200


def test_a_worker_that_is_killed(stack: Stack, lone: Lone) -> None:
    with lone.stream(tokens=40) as lines:
        [busy] = until(lambda: [info for info in stack.fleet().living if info.in_flight], 10, "a worker says so")
        name = busy.name.partition("@")[0]
        victim = next(each for each in stack.processes if each.name == name and each.popen.poll() is None)
        victim.signal(signal.SIGKILL)
        # Another goes on.
        assert list(lines)[-1] == "[DONE]"
    lone.passes(5, "a killed worker")
    stack.start_worker(name, ["--models", "fake,slow"])


def test_a_resumed_stream_that_is_cut_too(lone: Lone) -> None:
    body = {"modelId": "slow", "prompt": "p", "generation": {"maxNewTokens": 200}}
    with lone.http() as http:
        with http.stream("POST", "/inference/stream", json=body) as response:
            seen = next(event for event in events(response) if event.data)
        until(lambda: lone.ask().status_code == 200, 10, "its turn is given back")
        headers = {"Last-Event-ID": seen.id}
        with http.stream("GET", f"/inference/{seen.json()['id']}/stream", headers=headers) as response:
            next(event for event in events(response) if event.data)
            assert lone.ask().status_code == 429
    lone.passes(10, "a resumed stream that was cut")


def test_a_redis_that_stands_still_as_a_stream_ends(stack: Stack, lone: Lone) -> None:
    with ExitStack() as streams:
        lines = streams.enter_context(lone.stream(tokens=30))
        next(lines)
        threading.Timer(0.8, lambda: stack.client.execute_command("CLIENT", "PAUSE", 5000, "ALL")).start()
        begun = time.monotonic()
        list(lines)
    assert time.monotonic() - begun < 30
    lone.passes(40, "a pause of Redis")


def test_a_front_door_that_is_killed(stack: Stack, lone: Lone) -> None:
    """Last: a lease lapses within 30 seconds, and the refusals say when to come again."""
    web: Process = next(each for each in stack.processes if each.name == "web")
    with ExitStack() as streams:
        streams.enter_context(lone.stream())
        [child] = psutil.Process(web.pid).children()
        os.kill(child.pid, signal.SIGKILL)

    def answers() -> bool:
        try:
            return httpx.get(f"{stack.base}/health", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    until(answers, 20, "another process serves")
    refused = lone.ask()
    assert refused.status_code in (200, 429)
    until(lambda: lone.ask().status_code == 200, 35, "the lease lapsed")

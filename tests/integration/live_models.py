"""What the tests of live models share: a stack on the fake engine, streams that are watched, gRPC's Control."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from testing.stack import KEY, Stack
from testing.waiting import until
from tests.conftest import FAKE_MODELS
from webapp.rpc import ai_service_pb2 as pb
from webapp.rpc.ai_service_pb2_grpc import AiInferenceStub

FAKE = {"modelPath": "none", "engine": "fake", "tokensPerSecond": 50}


@contextmanager
def serving_fakes(folder: Path) -> Iterator[Stack]:
    """A front door and a worker that serves two fake models; ``models/empty`` is a folder without a model."""
    (folder / "models" / "empty").mkdir(parents=True)
    env = {
        "CY_LLM_KEEPALIVE_SECONDS": "0.5",
        "CY_LLM_MODEL_ROOTS": str(folder / "models"),
        "CY_LLM_VAR": str(folder / "var"),
    }
    started = Stack(folder / "stack", FAKE_MODELS, env=env)
    try:
        started.start_worker("w1", ["--models", "fake,slow"])
        started.start_web()
        yield started
    finally:
        started.close()


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with serving_fakes(tmp_path) as started:
        yield started


@pytest.fixture
def http(stack: Stack) -> Iterator[httpx.Client]:
    with stack.http() as client:
        yield client


def status(http: httpx.Client, model: str) -> str:
    answer = http.get(f"/models/{model}")
    return str(answer.json().get("status", answer.status_code))


def becomes(http: httpx.Client, model: str, wanted: str, seconds: float = 20) -> None:
    until(lambda: status(http, model) == wanted, seconds, f"{model} is {wanted}")


def ask(http: httpx.Client, model: str, tokens: int = 3) -> httpx.Response:
    return http.post("/inference", json={"modelId": model, "prompt": "x", "generation": {"maxNewTokens": tokens}})


def served_by(stack: Stack, request_id: str) -> str:
    """The worker whose log tells that it served a request; the line may come after the answer."""

    def found() -> str:
        for process in stack.processes:
            if any(line.get("message") == "Request done" for line in process.lines_of(request_id)):
                return process.name
        return ""

    return until(found, 5, f"a worker tells of {request_id}")


class Control:
    """gRPC's ``Control``."""

    def __init__(self, stack: Stack) -> None:
        self._channel = grpc.insecure_channel(f"127.0.0.1:{stack.grpc_port}")
        self._call = AiInferenceStub(self._channel).Control

    def __call__(self, command: str, **payload: str) -> dict[str, str]:
        message = pb.ControlMessage(command=command, payload=payload)
        return dict(self._call(message, metadata=[("x-api-key", KEY)], timeout=20).payload)


class Stream:
    """A stream in a thread of its own, and how it ended."""

    def __init__(self, stack: Stack, model: str, tokens: int) -> None:
        self.chunks = 0
        self.last: dict[str, Any] = {}
        self.error: dict[str, Any] | None = None
        self._stack, self._model, self._tokens = stack, model, tokens
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        until(lambda: self.chunks, 10, "the stream runs")
        # Workers tell once a second how much runs.
        until(self._is_counted, 5, "the stream is counted")

    def _is_counted(self) -> bool:
        infos = [worker.models.get(self._model, {}) for worker in self._stack.fleet().living]
        return sum(info.get("running", 0) for info in infos) > 0

    def _run(self) -> None:
        body = {"modelId": self._model, "prompt": "x", "generation": {"maxNewTokens": self._tokens}}
        with self._stack.http() as http, http.stream("POST", "/inference/stream", json=body) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    found = json.loads(line[6:])
                    self.error = found.get("error")
                    if self.error is None:
                        self.chunks, self.last = self.chunks + 1, found

    def finish(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()

"""Models come and go on a worker with real vLLM while streams run on another model of it: none of them pauses."""

import json
import logging
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from settings import ROOT
from testing.hub import Hub, serving_hub
from testing.stack import KEY, Stack
from testing.waiting import until
from tests.conftest import require
from webapp.rpc import ai_service_pb2 as pb
from webapp.rpc.ai_service_pb2_grpc import AiInferenceStub

_log = logging.getLogger(__name__)
pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]

_DEMO = {"modelPath": str(ROOT / "models" / "demo"), "enforceEager": True, "kvCacheMemoryBytes": 2**27}
_SMALL = {**_DEMO, "maxModelLen": 512, "kvCacheMemoryBytes": 2**24}
_STREAMS = 16
#: What a stream may pause. Wanted, and seen on an idle machine, is one second; a CI machine runs two test files on two
#: cores, which an engine that starts wants for itself.
_MAX_GAP_SECONDS = 10.0


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serving_hub(Hub({"acme/demo": ROOT / "models" / "demo"})) as started:
        yield started


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, hub: Hub) -> Iterator[Stack]:
    require(find_spec("vllm") is not None, "vLLM is not installed (bin/test installs it)")
    models = {"default": "demo", "models": {"demo": {**_DEMO, "maxModelLen": 8192}}}
    env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path_factory.mktemp("hf"))}
    stack = Stack(tmp_path_factory.mktemp("live"), models, env=env)
    try:
        stack.start_web()
        stack.start_grpc()
        stack.start_worker("real", seconds=180)
        yield stack
    finally:
        stack.close()


class Streams:
    """Streams that run for the whole of a block, each begun anew when it has ended; with the gaps between chunks."""

    def __init__(self, stack: Stack, count: int) -> None:
        self.longest = 0.0
        self.when = 0.0
        self.chunks = 0
        self.ended: list[str] = []
        self._stack = stack
        self._stop = threading.Event()
        self._begun = threading.Barrier(count + 1)
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]

    def __enter__(self) -> "Streams":
        for thread in self._threads:
            thread.start()
        self._begun.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self) -> None:
        body = {"modelId": "demo", "prompt": "Tell a story", "generation": {"maxNewTokens": 2000, "temperature": 1.5}}
        first = True
        with self._stack.http() as http:
            while not self._stop.is_set():
                with http.stream("POST", "/inference/stream", json=body) as answer:
                    last = 0.0
                    for line in answer.iter_lines():
                        if not line.startswith("data: {"):
                            continue
                        chunk = json.loads(line[6:])
                        if "error" in chunk:
                            self.ended.append(chunk["error"]["message"])
                        now = time.monotonic()
                        if last and now - last > self.longest:
                            self.longest, self.when = now - last, now
                        last, self.chunks = now, self.chunks + 1
                        if first:
                            first = False
                            self._begun.wait(60)
                            last = time.monotonic()
                        if self._stop.is_set():
                            return


def _status(stack: Stack, model: str) -> str:
    with stack.http() as http:
        answer = http.get(f"/models/{model}")
        return str(answer.json().get("status", answer.status_code))


def _becomes(stack: Stack, model: str, wanted: str) -> None:
    until(lambda: _status(stack, model) == wanted, 180, f"{model} is {wanted}")


def _ask(stack: Stack, model: str) -> None:
    with stack.http() as http:
        body = {"modelId": model, "prompt": "x", "generation": {"maxNewTokens": 3}}
        answer = http.post("/inference", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["modelId"] == model


def _children(stack: Stack) -> set[int]:
    [worker] = [process for process in stack.processes if process.name == "real"]
    return {child.pid for child in psutil.Process(worker.pid).children(recursive=True)}


def test_models_come_and_go_beside_running_streams(stack: Stack, tmp_path: Path) -> None:
    channel = grpc.insecure_channel(f"127.0.0.1:{stack.grpc_port}")

    def control(command: str, **payload: str) -> None:
        message = pb.ControlMessage(command=command, payload=payload)
        AiInferenceStub(channel).Control(message, metadata=[("x-api-key", KEY)], timeout=20)

    def cy_llm(*arguments: str) -> None:
        env: dict[str, str] = {**os.environ, **stack.environment}
        done = subprocess.run([ROOT / "bin" / "cy-llm", "models", *arguments], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def request(method: str, path: str, **body: Any) -> None:
        with stack.http() as http:
            answer = http.request(method, f"/models{path}", json=body)
            assert answer.status_code < 300, answer.text

    sets = " ".join(f"--set {key}={json.dumps(value)}" for key, value in _SMALL.items() if key != "modelPath").split()
    faces = {
        "http": (
            lambda: request("POST", "", id="http", **_SMALL),
            lambda: request("POST", "/http/load"),
            lambda: request("POST", "/http/unload"),
            lambda: request("DELETE", "/http"),
        ),
        "grpc": (
            lambda: control("add_model", model="grpc", entry=json.dumps(_SMALL)),
            lambda: control("load_model", model="grpc"),
            lambda: control("unload_model", model="grpc"),
            lambda: control("remove_model", model="grpc"),
        ),
        "cli": (
            lambda: cy_llm("add", "cli", _SMALL["modelPath"], *sets),
            lambda: cy_llm("load", "cli"),
            lambda: cy_llm("unload", "cli"),
            lambda: cy_llm("remove", "cli"),
        ),
    }
    before = _children(stack)
    _ask(stack, "demo")
    with Streams(stack, _STREAMS) as streams:
        for face, (add, load, unload, remove) in faces.items():
            started = time.monotonic()
            add()
            load()
            _becomes(stack, face, "ready")
            loaded = time.monotonic()
            _ask(stack, face)
            unload()
            _becomes(stack, face, "unavailable")
            # "Unloaded" is said when the memory is free: its processes are gone.
            assert _children(stack) == before
            remove()
            _becomes(stack, face, "404")
            _log.warning(
                "%s: loaded in %.1f s; longest gap so far %.2f s (%.1f s after)",
                face,
                loaded - started,
                streams.longest,
                streams.when - started,
            )
    _log.warning("%d chunks, longest gap %.2f s", streams.chunks, streams.longest)
    assert streams.ended == []
    assert streams.longest < _MAX_GAP_SECONDS


def test_a_model_of_the_hub_is_fetched_loaded_and_asked(stack: Stack, hub: Hub) -> None:
    hub.rate, hub.cuts = 2_000_000, 2
    before = _children(stack)
    states: list[str] = []
    with stack.http() as http:
        entry = {"id": "fetched", **_SMALL, "modelPath": "acme/demo", "load": True}
        assert http.post("/models", json=entry).status_code == 201

        def ready() -> bool:
            workers = http.get("/models/fetched").json()["workers"]
            states.extend(f"{each['state']} {each.get('progress', {}).get('total', 0)}" for each in workers)
            return any(each["state"] == "ready" for each in workers)

        until(ready, 120, "the model is ready")
        _ask(stack, "fetched")
        assert http.delete("/models/fetched").status_code == 202
    until(lambda: _children(stack) == before, 30, "it is unloaded")
    told = {state for state in states if state.startswith("downloading")}
    assert told and all(int(state.split()[1]) > 4_000_000 for state in told), set(states)
    assert any(state.startswith("loading") for state in states)
    starts = [first for method, path, first in hub.asked if method == "GET" and path.endswith("model.safetensors")]
    assert max(starts) > 0


def test_a_worker_that_is_told_to_stop_while_it_loads_does_not_wait_for_that(stack: Stack) -> None:
    worker = stack.spawn_worker("hasty")
    until(lambda: any(line.get("message") == "Loading model" for line in worker.lines()), 60, "it loads")
    stack.stop(worker)
    assert not any(line.get("message") == "Model is loaded" for line in worker.lines())


def test_an_engine_that_does_not_fit_is_told_and_leaves_nothing(stack: Stack) -> None:
    before = _children(stack)
    with stack.http() as http:
        entry = {"id": "huge", **_DEMO, "kvCacheMemoryBytes": 2**50, "allowAutoTuning": False, "load": True}
        assert http.post("/models", json=entry).status_code == 201
        _becomes(stack, "huge", "failed")
        [worker] = http.get("/models/huge").json()["workers"]
        assert "memory" in worker["reason"]
        _ask(stack, "demo")
        assert http.delete("/models/huge").status_code == 202
    until(lambda: _children(stack) == before, 30, "nothing of it is left")

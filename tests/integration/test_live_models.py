"""Models that are added, changed, loaded, unloaded and removed while the service runs, over every face."""

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from settings import ROOT
from store.redis import keys
from store.sql import db
from store.sql.models import ModelStore
from testing.stack import KEY, Stack, free_port, script
from testing.waiting import until
from tests.conftest import FAKE_MODELS
from webapp.rpc import ai_service_pb2 as pb
from webapp.rpc.ai_service_pb2_grpc import AiInferenceStub

FAKE = {"modelPath": "none", "engine": "fake", "tokensPerSecond": 50}


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    (tmp_path / "models" / "empty").mkdir(parents=True)
    env = {
        "CY_LLM_KEEPALIVE_SECONDS": "0.5",
        "CY_LLM_MODEL_ROOTS": str(tmp_path / "models"),
        "CY_LLM_VAR": str(tmp_path / "var"),
    }
    started = Stack(tmp_path / "stack", FAKE_MODELS, env=env)
    try:
        started.start_worker("w1", ["--models", "fake,slow"])
        started.start_web()
        yield started
    finally:
        started.close()


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


def test_from_added_to_removed(stack: Stack, http: httpx.Client) -> None:
    added = http.post("/models", json={"id": "extra", **FAKE, "aliases": ["more"]})
    assert added.status_code == 201, added.text
    assert added.json()["origin"] == "api" and added.json()["status"] == "unavailable"
    assert ask(http, "more").status_code == 503
    told = http.post("/models/more/load", json={})
    assert told.status_code == 202 and told.json()["workers"] == ["w1@test"]
    becomes(http, "extra", "ready")
    assert ask(http, "more").json()["modelId"] == "extra"
    stream = Stream(stack, "extra", 150)
    unloaded = http.post("/models/extra/unload").json()
    assert (unloaded["status"], unloaded["streams"], unloaded["forced"]) == ("draining", 1, False)
    until(lambda: status(http, "extra") == "draining", 5, "it is drained")
    assert ask(http, "extra").status_code == 503
    # What runs is not cut; what is loaded again meanwhile stays.
    stream.finish()
    assert stream.error is None and stream.chunks >= 150
    becomes(http, "extra", "unavailable")
    assert http.post("/models/extra/load").status_code == 202
    becomes(http, "extra", "ready")
    assert http.delete("/models/extra").status_code == 202
    assert http.get("/models/extra").status_code == 404
    assert ask(http, "extra").status_code == 404
    until(lambda: "extra" not in stack.find("w1").model_states, 10, "the worker has let it go")
    actions = [change["action"] for change in http.get("/models/extra/history").json()["changes"]]
    assert actions == ["remove", "load", "unload", "load", "add"]
    assert ask(http, "fake").status_code == 200


def test_force_ends_what_runs_and_says_so(stack: Stack, http: httpx.Client) -> None:
    stream = Stream(stack, "slow", 2000)
    told = http.post("/models/slow/unload", json={"force": True}).json()
    assert told["streams"] == 1 and told["forced"]
    stream.finish()
    assert stream.error is not None and stream.error["code"] == "MODEL_NOT_READY"
    assert "by force" in stream.error["message"]
    becomes(http, "slow", "unavailable")


def test_force_holds_for_what_comes_after_it_and_for_one_worker_alone(stack: Stack, http: httpx.Client) -> None:
    stack.start_worker("w2", ["--models", "slow"])
    mine = stack.presence.fleet(fresh=True)
    assert len(mine.serving("slow")) == 2
    streams = [Stream(stack, "slow", 60) for _ in range(6)]
    until(lambda: _running(stack, "slow") == 6, 5, "all are counted")
    told = http.post("/models/slow/unload", json={"worker": "w1@test", "force": True}).json()
    assert told["workers"] == ["w1@test"]
    for stream in streams:
        stream.finish()
    ended = [stream for stream in streams if stream.error is not None]
    # The other worker's answers are whole.
    assert len(ended) == told["streams"] and all(stream.chunks >= 60 for stream in streams if stream not in ended)
    until(lambda: "slow" not in stack.find("w1").model_states, 10, "w1 has let it go")
    assert ask(http, "slow").status_code == 200


def test_what_waits_for_an_unloaded_model_does_not_hang(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "stack", FAKE_MODELS)
    try:
        worker = [script("celery"), "-A", "tasks", "worker", "-Q", "gpu-infer", "-P", "threads", "-c", "2"]
        stack.run("w1", [*worker, "-n", "w1@test", "--without-gossip", "--without-mingle", "--models", "slow,fake"])
        stack.start_web()
        until(lambda: stack.find("w1"), 30, "the worker is ready")
        with stack.http() as http:
            running = [Stream(stack, "slow", 300) for _ in range(2)]
            answers: list[httpx.Response] = []
            waiting = [threading.Thread(target=lambda: answers.append(_ask_alone(stack, "slow"))) for _ in range(3)]
            for thread in waiting:
                thread.start()
            until(lambda: sum(map(stack.client.llen, stack.client.keys("gpu-infer.slow*"))) >= 3, 10, "they wait")
            http.post("/models/slow/unload")
            for thread in waiting:
                thread.join(30)
            assert [answer.status_code for answer in answers] == [503] * 3, [answer.text for answer in answers]
            for stream in running:
                stream.finish()
                assert stream.error is None
    finally:
        stack.close()


def _running(stack: Stack, model: str) -> int:
    return sum(worker.models.get(model, {}).get("running", 0) for worker in stack.fleet().living)


def _ask_alone(stack: Stack, model: str) -> httpx.Response:
    with stack.http() as http:
        return ask(http, model)


def test_a_drained_model_that_is_wanted_again_stays(stack: Stack, http: httpx.Client) -> None:
    stream = Stream(stack, "slow", 100)
    http.post("/models/slow/unload")
    until(lambda: status(http, "slow") == "draining", 5, "it is drained")
    http.post("/models/slow/load")
    becomes(http, "slow", "ready", 3)
    assert ask(http, "slow").status_code == 200
    stream.finish()
    assert stream.error is None
    assert status(http, "slow") == "ready"


def test_what_was_said_survives_restarts_and_a_flushed_redis(stack: Stack, http: httpx.Client) -> None:
    http.post("/models", json={"id": "extra", **FAKE, "load": True})
    becomes(http, "extra", "ready")
    http.post("/models/slow/unload")
    becomes(http, "slow", "unavailable")
    [worker] = [process for process in stack.processes if process.name == "w1"]
    stack.stop(worker)
    stack.client.flushall()
    stack.start_worker("w1", ["--models", "fake,slow"])
    becomes(http, "extra", "ready")
    assert status(http, "slow") == "unavailable"
    assert ask(http, "extra").status_code == 200
    # A change that nobody was told of is seen all the same once the number is gone.
    ModelStore(db.sessions(db.connect(stack.database_url))).place("slow", ["w1@test"], True, "me")
    stack.client.delete(keys.models_revision())
    becomes(http, "slow", "ready", 5)


def test_a_worker_started_by_default_gets_further_models(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "stack", FAKE_MODELS)
    try:
        stack.start_worker("w1")
        stack.start_worker("w2")
        stack.start_web()
        with stack.http() as http:
            http.post("/models/tiny/load", json={"worker": "w2@test"})
            becomes(http, "tiny", "ready")
            # Only one of the two has it: it has a queue of its own.
            assert [ask(http, "tiny").status_code for _ in range(12)] == [200] * 12
            # A third worker takes its share of the default model, and leaves the others theirs.
            stack.start_worker("w3", ["--models", "slow"])
            http.post("/models/fake/load", json={"worker": "w3@test"})
            until(lambda: "fake" in stack.find("w3").models, 10, "w3 has it too")
            served = {served_by(stack, ask(http, "fake").json()["id"]) for _ in range(40)}
            assert {"w1", "w3"} <= served or {"w2", "w3"} <= served
            http.post("/models/fake/unload", json={"worker": "w3@test"})
            until(lambda: "fake" not in stack.find("w3").model_states, 10, "w3 has let it go")
            http.post("/models/fake/unload", json={"worker": "w1@test"})
            until(lambda: "fake" not in stack.find("w1").model_states, 10, "w1 has let it go")
            assert [ask(http, "fake").status_code for _ in range(12)] == [200] * 12
            http.post("/models/fake/load", json={"worker": "w1@test"})
            until(lambda: "fake" in stack.find("w1").models, 10, "w1 has it again")
            assert "gpu-infer" in stack.find("w1").queues
    finally:
        stack.close()


def test_every_process_sees_a_change_within_two_seconds(stack: Stack, http: httpx.Client) -> None:
    port = free_port()
    other = stack.start_web(CY_LLM_PORT=str(port), CY_LLM_OPENAI_PORT=str(free_port()))
    stack.start_grpc()
    http.post("/models", json={"id": "extra", **FAKE})
    elsewhere = f"http://127.0.0.1:{port}/api/v1/models/extra"
    headers = {"X-API-Key": KEY}
    until(lambda: httpx.get(elsewhere, headers=headers, trust_env=False).status_code == 200, 2, "the other one sees it")
    client = Control(stack)
    until(lambda: "extra" in client("list_models"), 2, "gRPC sees it")
    stack.stop(other)


def test_values_over_the_model_file(stack: Stack, http: httpx.Client) -> None:
    before = http.get("/models/fake").json()
    changed = http.patch("/models/fake", json={"defaultMaxTokens": 3, "name": None})
    assert changed.status_code == 200, changed.text
    assert changed.json()["overrides"] == {"default_max_tokens": 3, "name": None}
    assert changed.json()["name"] == "fake" and before["name"] == "Fake"
    # What it is loaded with is shown to be old.
    assert changed.json()["workers"][0]["outdated"] is True
    seen = changed.json()["revision"]
    assert http.patch("/models/fake", json={"name": "A"}, headers={"If-Match": str(seen)}).status_code == 200
    late = http.patch("/models/fake", json={"name": "B"}, headers={"If-Match": str(seen)})
    assert late.status_code == 409 and "somebody else" in late.json()["error"]["message"]
    assert http.post("/models/fake/reset").json()["name"] == "Fake"
    assert "outdated" not in http.get("/models/fake").json()["workers"][0]


@pytest.mark.parametrize(
    ("body", "code", "named"),
    [
        ({"id": "fake", **FAKE}, 409, "already"),
        ({"id": "a b", **FAKE}, 400, "an id is"),
        ({"id": "x"}, 400, "model_path"),
        ({"id": "x", **FAKE, "colour": "red"}, 400, "'colour'"),
        ({"id": "x", **FAKE, "maxModelLen": "long"}, 400, "'max_model_len'"),
        ({"id": "x", **FAKE, "aliases": ["slow"]}, 400, "another model"),
        ({"id": "x", **FAKE, "engineArgs": {"trust_remote_code": True}}, 400, "never run"),
        ({"id": "x", "modelPath": "/etc"}, 400, "CY_LLM_MODEL_ROOTS"),
        ({"id": "x", "modelPath": "EMPTY"}, 400, "config.json"),
        ({"id": "x", "modelPath": "a/../../x"}, 400, "hub"),
        ({"id": "x", "modelPath": "file:///etc"}, 400, "hub"),
        ({"id": "x", "modelPath": "http://10.0.0.1/"}, 400, "hub"),
        ({"id": "x", "modelPath": "pypi:nothing"}, 400, "smollm2-135m"),
        ({"id": "x", "modelPath": "org/name", "chatTemplate": "/etc/passwd"}, 400, "itself"),
        ({"id": "x", "modelPath": "org/name", "adapterPath": "/etc"}, 400, "CY_LLM_ADAPTERS_ROOT"),
        ({"id": "x", "modelPath": "org/name", "engine": "gpu"}, 400, "known"),
    ],
)
def test_bad_entries_are_named(stack: Stack, http: httpx.Client, body: dict, code: int, named: str) -> None:
    if body.get("modelPath") == "EMPTY":
        body = {**body, "modelPath": str(Path(stack.env["CY_LLM_MODEL_ROOTS"]) / "empty")}
    answer = http.post("/models", json=body)
    assert answer.status_code == code, answer.text
    assert named in answer.text
    assert len(http.get("/models").json()["models"]) == len(FAKE_MODELS["models"])


def test_what_cannot_be_done_says_why(stack: Stack, http: httpx.Client) -> None:
    def refusal(answer: httpx.Response) -> tuple[int, str]:
        return answer.status_code, answer.json()["error"]["details"][0]["type"]

    assert refusal(http.delete("/models/fake")) == (409, "in_model_file")
    assert refusal(http.post("/models/nothing/load")) == (404, "model_not_found")
    assert refusal(http.post("/models/fake/load", json={"worker": "w9@test"})) == (400, "unknown_worker")
    assert refusal(http.post("/models/fake/unload", json={"force": "yes"}))[0] == 400
    http.post("/models", json={"id": "extra", **FAKE})
    assert refusal(http.post("/models/extra/reset")) == (409, "not_in_file")
    # An engine that cannot start is told with its reason; the others go on.
    broken = {"id": "broken", "modelPath": "acme/nothing", "load": True}
    assert http.post("/models", json=broken).status_code == 201
    becomes(http, "broken", "failed", 60)
    [worker] = http.get("/models/broken").json()["workers"]
    assert worker["reason"] and worker["since"]
    assert ask(http, "fake").status_code == 200
    assert http.delete("/models/broken").status_code == 202


def test_two_operators_at_once(stack: Stack, http: httpx.Client) -> None:
    results: list[int] = []

    def add() -> None:
        with stack.http() as mine:
            results.append(mine.post("/models", json={"id": "extra", **FAKE}).status_code)

    threads = [threading.Thread(target=add) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [201, *[409] * 5]


def test_two_changes_at_once_both_count(stack: Stack, http: httpx.Client) -> None:
    def change(key: str) -> None:
        with stack.http() as mine:
            assert mine.patch("/models/fake", json={key: 7}).status_code in (200, 409)

    threads = [
        threading.Thread(target=change, args=(key,)) for key in ("maxPending", "defaultMaxTokens", "chunkMergeMs")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = {row.id: row.entry for row in ModelStore(db.sessions(db.connect(stack.database_url))).state().entries}
    assert http.get("/models/fake").json()["overrides"] == written["fake"]
    assert written["fake"] == {"max_pending": 7, "default_max_tokens": 7, "chunk_merge_ms": 7}


def test_what_a_fake_was_given_is_no_way_around_the_folders(http: httpx.Client) -> None:
    assert http.post("/models", json={**FAKE, "id": "x", "modelPath": "/etc"}).status_code == 400
    assert http.patch("/models/fake", json={"modelPath": "/etc"}).status_code == 400
    body = {"id": "x", **FAKE, "foo": None}
    assert http.post("/models", json=body).status_code == 201
    assert http.patch("/models/x", json={"chatTemplate": "/etc/passwd"}).status_code == 400
    assert http.delete("/models/x").status_code == 202
    # Loaded at once, but nowhere: nothing is written.
    refused = http.post("/models", json={"id": "y", **FAKE, "load": True, "worker": "w9@test"})
    assert refused.status_code == 400 and http.get("/models/y").status_code == 404


def test_the_model_file_wins_a_clash_of_names(stack: Stack, http: httpx.Client) -> None:
    stack.start_grpc()
    http.post("/models", json={"id": "extra", **FAKE})
    document = json.loads(stack.config.read_text())
    document["models"]["extra"] = {"model_path": "none", "engine": "fake", "name": "From the file"}
    stack.config.write_text(json.dumps(document))
    client = Control(stack)
    with pytest.raises(Exception, match="was added by an operator"):
        client("reload_registry")
    assert http.get("/models/extra").json()["origin"] == "api"
    assert http.delete("/models/extra").status_code == 202
    assert "extra" in client("reload_registry")["models"]
    until(lambda: http.get("/models/extra").json().get("name") == "From the file", 3, "the front door has read it")


def test_only_operators_may(stack: Stack) -> None:
    headers = {"Authorization": "Bearer test-gateway-token"}
    with httpx.Client(base_url=f"{stack.base}/api/v1", headers=headers, trust_env=False) as client:
        for method, path in (("POST", "/models"), ("PATCH", "/models/fake"), ("DELETE", "/models/fake")):
            assert client.request(method, path, json={}).status_code == 403
        for action in ("load", "unload", "reset"):
            assert client.post(f"/models/fake/{action}").status_code == 403
        assert client.get("/models/fake/history").status_code == 403


def test_the_same_by_grpc_and_on_the_command_line(stack: Stack, http: httpx.Client) -> None:
    stack.start_grpc()
    client = Control(stack)
    client("add_model", model="extra", entry=json.dumps(FAKE))
    assert client("load_model", model="extra")["workers"] == "w1@test"
    until(lambda: client("model_status", model="extra")["status"] == "ready", 10, "it is loaded")
    assert client("model_status", model="extra")["worker:w1@test"] == "ready"
    client("change_model", model="extra", entry='{"maxPending": 7}')
    assert client("unload_model", model="extra")["streams"] == "0"
    becomes(http, "extra", "unavailable")
    client("remove_model", model="extra")
    with pytest.raises(Exception, match="Invalid model ID"):
        client("load_model")

    def cy_llm(*arguments: str) -> str:
        env: dict[str, str] = {**os.environ, **stack.environment}
        done = subprocess.run([ROOT / "bin" / "cy-llm", "models", *arguments], env=env, capture_output=True, text=True)
        return done.stdout + done.stderr

    assert "extra: added" in cy_llm("add", "extra", "none", "--set", "engine=fake", "--set", "maxModelLen=100")
    assert "loading on w1@test" in cy_llm("load", "extra")
    becomes(http, "extra", "ready")
    assert "w1@test ready" in cy_llm("list")
    assert "changed" in cy_llm("set", "extra", "default_max_tokens=4")
    assert "its entry was changed since" in cy_llm("status", "extra")
    assert "draining on w1@test" in cy_llm("unload", "extra")
    becomes(http, "extra", "unavailable")
    assert "extra: unavailable" in cy_llm("remove", "extra")
    assert "not configured" in cy_llm("status", "extra")


def test_a_model_that_is_needed_is_not_removed(stack: Stack, http: httpx.Client) -> None:
    http.post("/models", json={"id": "extra", **FAKE, "enableLora": True})
    _add_adapter(stack, "mine", "extra")
    refused = http.delete("/models/extra")
    assert refused.status_code == 409 and "adapter mine@1" in refused.text
    assert http.delete("/models/extra?force=true").status_code == 202


def _add_adapter(stack: Stack, name: str, model: str) -> None:
    from store.sql.tables import Adapter

    with db.sessions(db.connect(stack.database_url)).begin() as session:
        session.add(
            Adapter(
                name=name, version=1, base_model=model, path=f"{name}/1", rank=8, checksum="0", job_id="", metrics={}
            )
        )

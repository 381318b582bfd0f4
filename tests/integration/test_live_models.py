"""Models that are added, changed, loaded, unloaded and removed while the service runs, over every face."""

import json
import os
import subprocess
import threading
from pathlib import Path

import httpx
import pytest

from settings import ROOT
from store.redis import keys
from store.sql import db
from store.sql.models import ModelStore
from testing.stack import KEY, Stack, free_port, script
from testing.waiting import until
from tests.conftest import FAKE_MODELS
from tests.integration.live_models import FAKE, Control, Stream, ask, becomes, http, served_by, stack, status

__all__ = ["http", "stack"]


def test_from_added_to_removed(stack: Stack, http: httpx.Client) -> None:
    added = http.post("/models", json={"id": "extra", **FAKE, "aliases": ["more"]})
    assert added.status_code == 201, added.text
    assert added.json()["origin"] == "api" and added.json()["status"] == "unavailable"
    assert ask(http, "more").status_code == 503
    told = http.post("/models/more/load", json={})
    assert told.status_code == 202 and told.json()["workers"] == ["w1@test"]
    becomes(http, "extra", "ready")
    assert ask(http, "more").json()["modelId"] == "extra"
    # Longer than a drained model is kept in any case.
    stream = Stream(stack, "extra", 400)
    unloaded = http.post("/models/extra/unload").json()
    assert (unloaded["status"], unloaded["streams"], unloaded["forced"]) == ("draining", 1, False)
    until(lambda: status(http, "extra") == "draining", 5, "it is drained")
    assert ask(http, "extra").status_code == 503
    # What runs is not cut; what is loaded again meanwhile stays.
    stream.finish()
    assert stream.error is None and stream.chunks >= 400
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


@pytest.mark.full
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


@pytest.mark.full
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


@pytest.mark.full
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


@pytest.mark.full
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


@pytest.mark.full
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
            served: set[str] = set()

            def both() -> bool:
                # The front door knows of it within half a second.
                served.add(served_by(stack, ask(http, "fake").json()["id"]))
                return {"w1", "w3"} <= served or {"w2", "w3"} <= served

            until(both, 20, "its share goes to the third worker")
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


@pytest.mark.full
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


def test_a_model_that_cannot_be_loaded_at_the_start_leaves_the_others_served(tmp_path: Path) -> None:
    models = {"default": "fake", "models": {"fake": FAKE, "broken": {"modelPath": "none", "engine": "no-such-engine"}}}
    stack = Stack(tmp_path / "stack", models, env={"CY_LLM_VAR": str(tmp_path / "var")})
    try:
        stack.start_worker("w1", ["--models", "broken,fake"])
        stack.start_web()
        with stack.http() as http:
            assert ask(http, "fake").status_code == 200
            assert status(http, "broken") == "failed"
            assert "unknown engine" in http.get("/models/broken").json()["workers"][0]["reason"]
            assert ask(http, "broken").status_code == 503
            worker = stack.find("w1")
            assert worker is not None and "gpu-infer.broken" not in worker.queues
            # Mended and asked for, it is loaded.
            assert http.patch("/models/broken", json={"engine": "fake"}).status_code == 200
            assert http.post("/models/broken/load").status_code == 202
            becomes(http, "broken", "ready")
            assert ask(http, "broken").status_code == 200
    finally:
        stack.close()

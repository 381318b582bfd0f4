"""Real Celery workers on the fake engine: routing, drain, failing to start, what Flower sees."""

import base64
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from store.redis.request_records import RequestRecord
from tasks.broker import submit as queue
from tasks.broker.messages import task_message
from tasks.broker.names import TASK_GENERATE
from testing.fake_text import expected_text
from testing.sse import Event, events, text_of
from testing.stack import Stack, script
from testing.waiting import until


@contextmanager
def streaming(stack: Stack, model: str, tokens: int) -> Iterator[Iterator[Event]]:
    """A stream that has begun: its first event was read."""
    body = {"modelId": model, "prompt": "p", "generation": {"maxNewTokens": tokens}}
    with stack.http() as http, http.stream("POST", "/inference/stream", json=body) as response:
        yield events(response)


def workers(http: httpx.Client) -> dict[str, int]:
    counts: dict[str, int] = http.get("/health/details").json()["components"]["coordinator"]["details"]["workers"]
    return counts


def test_sigterm_lets_a_stream_finish_and_a_new_worker_takes_over(own_stack: Stack) -> None:
    old = own_stack.start_worker("old", ["--models", "slow"])
    own_stack.start_web()
    with streaming(own_stack, "slow", 40) as stream:
        found = [next(stream)]
        old.signal(signal.SIGTERM)
        with own_stack.http() as http:

            def draining() -> bool:
                return workers(http) == {"total": 1, "healthy": 0, "unhealthy": 1}

            until(draining, 5, "the old worker takes no more requests")
            refused = http.post("/inference", json={"modelId": "slow", "prompt": "p"})
        own_stack.start_worker("new", ["--models", "slow"])
        found += list(stream)
    assert text_of(found) == expected_text("p", 40)
    assert refused.status_code == 503
    assert old.wait(20) == 0
    with own_stack.http() as http:
        again = http.post("/inference", json={"modelId": "slow", "prompt": "p", "generation": {"maxNewTokens": 2}})
        after = workers(http)
    assert again.json()["choices"][0]["text"] == expected_text("p", 2)
    assert after == {"total": 1, "healthy": 1, "unhealthy": 0}


def test_drain_time_bounds_the_wait(own_stack: Stack) -> None:
    """What is left when it is over is handed over: here nobody is there to take it."""
    worker = own_stack.start_worker("w", ["--models", "slow"], CY_LLM_DRAIN_SECONDS="1")
    own_stack.start_web()
    with streaming(own_stack, "slow", 2000) as stream, own_stack.http() as http:
        request_id = next(stream).json()["id"]
        worker.signal(signal.SIGTERM)
        assert worker.wait(15) == 0
        assert http.get(f"/inference/{request_id}").json()["state"] == "paused"
        assert http.post(f"/inference/{request_id}/cancel").json()["state"] == "cancelled"
        found = list(stream)
    assert found[-1].data == "[DONE]"


def test_models_have_their_own_queues_and_the_rest_share_one(own_stack: Stack) -> None:
    own_stack.start_worker("general")
    own_stack.start_worker("special", ["--models", "slow,tiny"])
    fleet = own_stack.fleet()
    assert queue.queue_for(fleet, "fake") == "gpu-infer"
    assert queue.queue_for(fleet, "slow") == "gpu-infer.slow"
    assert queue.queue_for(fleet, "tiny") == "gpu-infer.tiny"
    assert queue.queue_for(fleet, "idle") is None
    own_stack.start_web()
    with own_stack.http() as http:
        for model in ("fake", "slow", "tiny"):
            body = {"modelId": model, "prompt": "p", "generation": {"maxNewTokens": 2}}
            assert http.post("/inference", json=body).status_code == 200


def test_gpu_option_pins_the_devices(own_stack: Stack) -> None:
    worker = own_stack.start_worker("pinned", ["--gpu", "3"])
    with open(f"/proc/{worker.pid}/environ", "rb") as file:  # noqa: PTH123
        before = file.read()
    assert b"CUDA_VISIBLE_DEVICES=3" not in before
    line = next(line for line in worker.lines() if line["message"] == "GPUs are pinned")
    assert line["cuda_visible_devices"] == "3"


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ({"m": {"model_path": "x", "engine": "warp-drive"}}, ["'m'", "warp-drive", "cuda-vllm-async", "cuda-vllm"]),
        ({"m": {"model_path": "x", "engine": "fake", "max_model_len": "long"}}, ["'m'", "max_model_len"]),
    ],
)
def test_a_worker_that_cannot_serve_says_why_and_ends(own_stack: Stack, models: dict, words: list[str]) -> None:
    own_stack.config.write_text(json.dumps(models))
    worker = own_stack.spawn_worker("broken")
    assert worker.wait(30) != 0
    assert all(word in worker.tail() for word in words)
    assert own_stack.fleet().living == ()


def test_an_unknown_model_option_says_so(own_stack: Stack) -> None:
    worker = own_stack.spawn_worker("broken", ["--models", "nope"])
    assert worker.wait(30) != 0
    assert "'nope' is not configured" in worker.tail()


def test_a_killed_worker_is_listed_as_unhealthy(own_stack: Stack) -> None:
    worker = own_stack.start_worker("victim")
    own_stack.start_web()
    own_stack.stop(worker, signal.SIGKILL)
    until(lambda: not own_stack.fleet().living, 5, "the presence lapses")
    with own_stack.http() as http:
        health = http.get("/health")
        details = http.get("/health/details").json()
    assert health.status_code == 503
    assert health.json()["components"]["coordinator"] == "DOWN"
    assert details["components"]["coordinator"]["details"]["workers"] == {"total": 1, "healthy": 0, "unhealthy": 1}


def test_queue_and_events_hold_ids_and_no_prompt(own_stack: Stack) -> None:
    """What Flower shows is what goes over the broker: all of it is listened to."""
    own_stack.start_worker("w")
    own_stack.start_web()
    # As Flower does when it starts.
    assert own_stack.run("control", [script("celery"), "-A", "tasks", "control", "enable_events"]).wait(30) == 0
    messages: list[bytes] = []
    with own_stack.client.pubsub(ignore_subscribe_messages=True) as pubsub, own_stack.http() as http:
        pubsub.psubscribe("*")
        pubsub.get_message(timeout=1)
        body = {"modelId": "fake", "prompt": "very secret prompt", "generation": {"maxNewTokens": 1}}
        answer = http.post("/inference", json=body).json()

        def finished() -> bool:
            if message := pubsub.get_message(timeout=0.1):
                messages.append(decoded(message["data"]))
            return any(b"task-succeeded" in message for message in messages)

        until(finished, 10, "the task's events came")
    received = [message for message in messages if b"task-received" in message]
    assert any(TASK_GENERATE.encode() in message and answer["id"].encode() in message for message in received)
    assert not any(b"secret" in message for message in messages)


def celery(stack: Stack, *words: str) -> Any:
    """What ``celery -A tasks`` prints."""
    process = stack.run("celery", [script("celery"), "-A", "tasks", *words])
    assert process.wait(60) == 0, process.tail()
    return json.loads(process.log.read_text().splitlines()[-1])


def test_inspect_engine_and_control_drain(own_stack: Stack) -> None:
    worker = own_stack.start_worker("w", ["--models", "fake,slow"])
    own_stack.start_web()
    [report] = celery(own_stack, "inspect", "--json", "engine").values()
    assert set(report["engines"]) == {"fake", "slow"}
    assert report["models"]["fake"]["state"] == "ready"
    assert report["in_flight"] == 0
    with streaming(own_stack, "slow", 40) as stream:
        next(stream)
        celery(own_stack, "control", "--json", "drain")
        # What runs is finished first.
        assert [event for event in stream if event.data][-1].data == "[DONE]"
    assert worker.wait(30) == 0


def decoded(message: bytes) -> bytes:
    """A broker message with its base64 body opened, where it has one."""
    try:
        return message + base64.b64decode(json.loads(message)["body"])
    except (ValueError, KeyError, TypeError):
        return message


def test_a_message_that_was_sent_twice_runs_once(own_stack: Stack) -> None:
    """A front door whose connection broke under the answer of its LPUSH repeats it."""
    worker = own_stack.start_worker("w", ["--models", "slow"])
    own_stack.start_web()
    with streaming(own_stack, "slow", 30) as stream:
        found = [next(stream), next(stream)]
        request_id = next(event.json()["id"] for event in found if event.data)
        key, message = task_message(
            TASK_GENERATE, request_id, [request_id, "slow"], {"attempt": 1}, "gpu-infer.slow", 0, time.time() + 60
        )
        own_stack.client.lpush(key, message)
        until(lambda: "running here already" in worker.log.read_text(), 10, "the second one is noticed")
        found += list(stream)
    assert text_of(found) == expected_text("p", 30)


def test_record_does_not_show_its_prompt_when_logged() -> None:
    record = RequestRecord(
        id="gen-1", kind="generate", model="m", owner="o", deadline=0, payload={"prompt": "secret"}, created=0
    )
    assert "secret" not in repr(record)


def test_redis_that_goes_away_is_503_within_two_seconds_and_the_process_recovers(own_stack: Stack) -> None:
    own_stack.start_worker("w")
    own_stack.start_web()
    body = {"modelId": "fake", "prompt": "p", "generation": {"maxNewTokens": 2}}
    with own_stack.http() as http:
        assert http.post("/inference", json=body).status_code == 200
        own_stack.redis.stop()
        for path in ("/inference", "/inference/stream"):
            gone = http.post(path, json=body)
            assert gone.status_code == 503
            assert gone.json()["error"]["details"][0]["type"] == "redis_unavailable"
            assert gone.elapsed.total_seconds() < 2
        health = http.get("/health")
        assert (health.status_code, health.json()["components"]["redis"]) == (503, "DOWN")
        own_stack.redis.start()

        def served() -> httpx.Response | None:
            response = http.post("/inference", json=body)
            return response if response.status_code == 200 else None

        answer = until(served, 30, "the system serves again")
    assert answer.json()["choices"][0]["text"] == expected_text("p", 2)


def test_redis_that_hangs_is_503_within_two_seconds(own_stack: Stack) -> None:
    own_stack.start_worker("w")
    own_stack.start_web()
    body = {"modelId": "fake", "prompt": "p", "generation": {"maxNewTokens": 2}}
    with own_stack.http() as http:
        assert http.post("/inference", json=body).status_code == 200
        os.kill(own_stack.redis.pid, signal.SIGSTOP)
        try:
            gone = http.post("/inference", json=body)
        finally:
            os.kill(own_stack.redis.pid, signal.SIGCONT)
        assert gone.status_code == 503
        assert gone.elapsed.total_seconds() < 2.5

"""Bounds: queue, rate, streams of a key; priorities and hints."""

import re
import threading
from typing import Any

import httpx

from store.token_log import log as token_log
from testing.background_stream import streaming
from testing.stack import Stack
from testing.waiting import until


def post(stack: Stack, prompt: str, model: str = "slow", tokens: int = 5, **fields: Any) -> httpx.Response:
    body = {"modelId": model, "prompt": prompt, "generation": {"maxNewTokens": tokens}, **fields}
    with stack.http() as http:
        return http.post("/inference", json=body)


def in_background(target: Any, *args: Any, **fields: Any) -> tuple[threading.Thread, list[httpx.Response]]:
    found: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: found.append(target(*args, **fields)))
    thread.start()
    return thread, found


def waiting(stack: Stack) -> int:
    with stack.http() as http:
        parts = http.get("/health/details").json()["components"]
    return int(parts["coordinator"]["details"]["queue"]["pendingTasks"])


def test_a_full_queue_is_503_with_retry_after(own_stack: Stack) -> None:
    own_stack.start_worker("w", ["--models", "slow", "-c", "1"])
    own_stack.start_web(CY_LLM_MAX_QUEUE_SIZE="3")
    with streaming(own_stack, tokens=60) as stream:
        held = []
        for number in range(3):
            held.append(in_background(post, own_stack, f"q{number}"))
            until(lambda n=number: waiting(own_stack) == n + 1, 10, f"{number + 1} requests wait")
        refused = post(own_stack, "one too many")
        stream.join()
        for thread, _ in held:
            thread.join(30)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "INSUFFICIENT_RESOURCES"
    assert refused.json()["error"]["details"][0]["type"] == "queue_full"
    assert int(refused.headers["Retry-After"]) > 0
    assert [found[0].status_code for _, found in held] == [200, 200, 200]
    assert post(own_stack, "again").status_code == 200


def test_a_model_may_have_a_bound_of_its_own(own_stack: Stack) -> None:
    models = own_stack.models
    own_stack.config.write_text(__import__("json").dumps({"slow": {**models["models"]["slow"], "maxPending": 1}}))
    own_stack.start_worker("w", ["--models", "slow", "-c", "1"])
    own_stack.start_web()
    with streaming(own_stack, tokens=40):
        thread, _ = in_background(post, own_stack, "q")
        until(lambda: waiting(own_stack) == 1, 10, "one request waits")
        refused = post(own_stack, "one too many")
        thread.join(30)
    assert refused.status_code == 503


def test_requests_a_minute_are_429_and_shared_by_processes(own_stack: Stack) -> None:
    own_stack.start_worker("w", ["--models", "fake"])
    own_stack.start_web(CY_LLM_REQUESTS_PER_MINUTE="5", CY_LLM_WEB_WORKERS="2")
    answers = [post(own_stack, "p", "fake", 1) for _ in range(8)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 3
    assert answers[-1].json()["error"]["code"] == "RATE_LIMITED"
    assert 0 < int(answers[-1].headers["Retry-After"]) <= 60
    with own_stack.openai() as client:
        import openai
        import pytest

        with pytest.raises(openai.RateLimitError) as raised:
            client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "x"}])
        headers = raised.value.response.headers
        assert raised.value.request_id == headers["x-request-id"]
        assert headers["x-ratelimit-limit-requests"] == "5"
        assert headers["x-ratelimit-remaining-requests"] == "0"
        assert re.fullmatch(r"(\d+m)?\d+m?s", headers["x-ratelimit-reset-requests"])
        assert int(headers["retry-after-ms"]) == 1000 * int(headers["retry-after"]) <= 60_000


def test_what_is_left_is_told(own_stack: Stack) -> None:
    own_stack.start_worker("w", ["--models", "fake"])
    own_stack.start_web(CY_LLM_REQUESTS_PER_MINUTE="5")
    with own_stack.openai() as client:
        for left in (4, 3):
            raw = client.chat.completions.with_raw_response.create(
                model="fake", messages=[{"role": "user", "content": "x"}], max_tokens=1
            )
            assert raw.headers["x-ratelimit-remaining-requests"] == str(left)
            assert int(raw.headers["openai-processing-ms"]) >= 0


def test_streams_at_once_are_429_and_freed_at_their_end(own_stack: Stack) -> None:
    own_stack.start_worker("w", ["--models", "slow"])
    own_stack.start_web(CY_LLM_STREAMS_PER_KEY="2")
    with streaming(own_stack, "a", 30) as first, streaming(own_stack, "b", 30) as second:
        refused = post(own_stack, "c")
        first.join()
        second.join()
    assert refused.status_code == 429
    assert refused.json()["error"]["details"][0]["type"] == "concurrent_streams"
    until(lambda: post(own_stack, "d").status_code == 200, 5, "the streams are free again")


def test_priority_orders_the_queue(own_stack: Stack) -> None:
    own_stack.start_worker("w", ["--models", "slow", "-c", "1"])
    own_stack.start_web()
    finished: list[int] = []

    def ask(priority: int) -> None:
        answer = post(own_stack, f"p{priority}", tokens=4, priority=priority)
        assert answer.status_code == 200
        finished.append(priority)

    with streaming(own_stack, tokens=60) as stream:
        threads = []
        for count, priority in enumerate((0, 5, 9, 2)):
            threads.append(threading.Thread(target=ask, args=(priority,)))
            threads[-1].start()
            until(lambda c=count: waiting(own_stack) == c + 1, 10, f"{count + 1} requests wait")
        stream.join()
        for thread in threads:
            thread.join(30)
    assert finished == [9, 5, 2, 0]


def test_a_priority_outside_0_to_9_is_400(fake_stack: Stack) -> None:
    for priority in (-1, 10, "high"):
        answer = post(fake_stack, "p", "fake", priority=priority)
        assert answer.status_code == 400
        assert answer.json()["error"]["details"][0]["field"] == "priority"


def test_a_hint_is_followed_while_its_worker_lives(own_stack: Stack) -> None:
    for name in ("a", "b"):
        own_stack.start_worker(name, ["--models", "fake"])
    own_stack.start_web()

    def served_by(hint: str) -> str:
        request_id = post(own_stack, "p", "fake", 1, workerHint=hint).json()["id"]
        opened = token_log.read(own_stack.client, request_id)[0]
        return str(opened.json()["worker"]).split(":")[0]

    assert [served_by("b@test") for _ in range(4)] == ["b@test"] * 4
    assert [served_by("a@test") for _ in range(4)] == ["a@test"] * 4
    assert served_by("nobody@test") in ("a@test", "b@test")
    own_stack.stop(next(process for process in own_stack.processes if process.name == "b"))
    # Whether the front door still believes in it or not: then the request is sent again.
    assert served_by("b@test") == "a@test"

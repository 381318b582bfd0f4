"""Dropped clients, cancels, idempotency keys: what the API promises about a request that goes on."""

import contextlib
import os
import signal
import threading
from pathlib import Path
from typing import Any

import httpx

from store.principal import Scope
from store.redis import keys as redis_keys
from store.sql.api_keys import ApiKeyStore
from store.token_log import log as token_log
from store.token_log.entries import Kind
from testing.background_stream import TOKENS, running, streaming
from testing.fake_text import expected_text
from testing.sse import Event, events, text_of
from testing.stack import Stack
from testing.waiting import until


def read_some(stack: Stack, count: int, prompt: str = "p", tokens: int = TOKENS) -> list[Event]:
    """Begin a stream, read ``count`` chunks and drop the connection."""
    body = {"modelId": "slow", "prompt": prompt, "generation": {"maxNewTokens": tokens}}
    found: list[Event] = []
    with stack.http() as http, http.stream("POST", "/inference/stream", json=body) as response:
        for event in events(response):
            if event.data:
                found.append(event)
            if len(found) == count:
                return found
    return found


def resume(stack: Stack, last: Event, base: str = "", **options: Any) -> list[Event]:
    request_id = last.json()["id"]
    path = f"{base}/inference/{request_id}/stream"
    with (
        stack.http() as http,
        http.stream("GET", path, headers={"Last-Event-ID": last.id}, **options) as response,
    ):
        assert response.status_code == 200, response.read()
        return list(events(response))


def test_a_dropped_client_resumes_by_id(fake_stack: Stack) -> None:
    first = read_some(fake_stack, 5)
    rest = resume(fake_stack, first[-1])
    assert text_of(first) + text_of(rest) == expected_text("p", TOKENS)
    assert rest[-1].data == "[DONE]"
    # And once more, after the end.
    assert text_of(first) + text_of(resume(fake_stack, first[-1])) == expected_text("p", TOKENS)


def test_the_id_may_come_as_a_parameter(fake_stack: Stack) -> None:
    first = read_some(fake_stack, 2, tokens=20)
    request_id = first[-1].json()["id"]
    with (
        fake_stack.http() as http,
        http.stream("GET", f"/inference/{request_id}/stream?lastEventId={first[-1].id}") as response,
    ):
        rest = list(events(response))
    assert text_of(first) + text_of(rest) == expected_text("p", 20)


def test_a_client_that_left_frees_the_engine_and_can_come_back(fake_stack: Stack) -> None:
    first = read_some(fake_stack, 5, tokens=2000)
    request_id = first[0].json()["id"]

    def released() -> bool:
        last = token_log.snapshot(fake_stack.client, request_id).last
        return last is not None and last.kind == Kind.RELEASE

    until(released, 5, "the worker let go")
    until(lambda: running(fake_stack) == 0, 5, "the engine is free")
    with fake_stack.http() as http:
        paused = http.get(f"/inference/{request_id}").json()
    assert paused["state"] == "paused"
    assert 0 < paused["usage"]["completion_tokens"] < 2000
    # It goes on from there, exactly.
    text = text_of(first)
    with (
        fake_stack.http() as http,
        http.stream("GET", f"/inference/{request_id}/stream", headers={"Last-Event-ID": first[-1].id}) as response,
    ):
        for event in events(response):
            if event.data:
                text += event.json()["choices"][0]["text"]
            if len(text) > len(text_of(first)) + 400:
                break
    assert expected_text("p", 2000).startswith(text)
    assert len(text) > len(text_of(first)) + 300


def test_a_silent_stream_learns_that_its_client_left(fake_stack: Stack) -> None:
    """Nothing is written to the client meanwhile: the server has to look."""
    body = {"modelId": "paused", "prompt": "p", "generation": {"maxNewTokens": 50}}
    with fake_stack.http() as http, http.stream("POST", "/inference/stream", json=body) as response:
        until(lambda: running(fake_stack) == 1, 10, "the engine has it")
        response.close()
    until(lambda: running(fake_stack) == 0, 4, "the engine is free")


def test_a_waiting_answer_learns_that_its_client_left(fake_stack: Stack) -> None:
    body = {"modelId": "paused", "prompt": "p", "generation": {"maxNewTokens": 50}}
    with fake_stack.http() as http:
        try:
            http.post("/inference", json=body, timeout=1)
        except httpx.ReadTimeout:
            pass
        else:
            raise AssertionError("an answer came too soon")
    until(lambda: running(fake_stack) == 0, 4, "the engine is free")


def test_cancel_ends_it_with_partial_usage(fake_stack: Stack) -> None:
    with streaming(fake_stack, tokens=2000) as stream, fake_stack.http() as http:
        answer = http.post(f"/inference/{stream.id}/cancel").json()
        found = stream.join(10)
        again = http.post(f"/inference/{stream.id}/cancel").json()
    assert answer["state"] == "cancelled"
    assert 0 < answer["usage"]["completion_tokens"] < 2000
    assert again == answer
    assert found[-2].json()["choices"][0]["finish_reason"] == "cancelled"
    assert found[-1].data == "[DONE]"
    until(lambda: running(fake_stack) == 0, 5, "the engine is free")


def test_state_and_text_so_far(fake_stack: Stack) -> None:
    with streaming(fake_stack, tokens=40) as stream, fake_stack.http() as http:
        during = http.get(f"/inference/{stream.id}").json()
        stream.join()
        after = http.get(f"/inference/{stream.id}").json()
    assert during["state"] == "running"
    assert expected_text("p", 40).startswith(during["choices"][0]["text"])
    assert during["choices"][0]["text"]
    assert after["state"] == "finished"
    assert after["choices"] == [{"index": 0, "text": expected_text("p", 40), "finish_reason": "length"}]
    assert after["usage"]["completion_tokens"] == 40


def test_another_tenant_may_neither_follow_nor_cancel(own_stack: Stack) -> None:
    from store.sql import db

    engine = db.connect(own_stack.database_url)
    other = ApiKeyStore(db.sessions(engine)).add("other", [Scope.INFERENCE], tenant="elsewhere")
    engine.dispose()
    own_stack.start_worker("w", ["--models", "slow"])
    own_stack.start_web()
    with streaming(own_stack, tokens=30) as stream, own_stack.http() as http:
        stranger = {"X-API-Key": other}
        unknown = http.get("/inference/gen-000000000000000000000000")
        answers = [
            http.get(f"/inference/{stream.id}", headers=stranger),
            http.get(f"/inference/{stream.id}/stream", headers=stranger),
            http.post(f"/inference/{stream.id}/cancel", headers=stranger),
        ]
        assert text_of(stream.join()) == expected_text("p", 30)
    assert [answer.status_code for answer in answers] == [404, 404, 404]
    assert unknown.status_code == 404
    body = unknown.json()["error"]
    assert answers[0].json()["error"]["code"] == body["code"] == "NOT_FOUND"


def test_a_bad_event_id_is_400(fake_stack: Stack) -> None:
    first = read_some(fake_stack, 1, tokens=3)
    request_id = first[0].json()["id"]
    with fake_stack.http() as http:
        answer = http.get(f"/inference/{request_id}/stream", headers={"Last-Event-ID": "nonsense"})
    assert answer.status_code == 400
    assert answer.json()["error"]["details"][0]["field"] == "lastEventId"


def test_resuming_from_the_very_end_gives_the_end_once_more(fake_stack: Stack) -> None:
    whole = read_some(fake_stack, 1000, tokens=3)
    finish = [event for event in whole if event.id][-1]
    assert finish.json()["choices"][0]["finish_reason"] == "length"
    rest = resume(fake_stack, finish)
    assert rest == [finish, whole[-1]]


def test_an_id_beyond_the_log_is_400(fake_stack: Stack) -> None:
    last = read_some(fake_stack, 1000, tokens=3)[-2]
    request_id = last.json()["id"]
    with fake_stack.http() as http:
        answer = http.get(f"/inference/{request_id}/stream", headers={"Last-Event-ID": "99-0"})
    assert answer.status_code == 400


def test_an_expired_log_is_gone_with_its_request(own_stack: Stack) -> None:
    own_stack.start_worker("w", ["--models", "fake"], CY_LLM_STREAM_TTL_SECONDS="1")
    own_stack.start_web(CY_LLM_STREAM_TTL_SECONDS="1")
    with own_stack.http() as http:
        body = {"modelId": "fake", "prompt": "p", "generation": {"maxNewTokens": 2}}
        request_id = http.post("/inference", json=body).json()["id"]
        until(lambda: not own_stack.client.exists(redis_keys.log(request_id)), 5, "the log has expired")
        until(lambda: http.get(f"/inference/{request_id}").status_code == 404, 5, "the request is gone")
    keys = [key for key in own_stack.client.scan_iter("cy:*") if request_id.encode() in key]
    assert keys == []


def test_a_queued_request_whose_client_left_never_reaches_the_engine(own_stack: Stack) -> None:
    worker = own_stack.start_worker("w", ["--models", "slow", "-c", "1"])
    own_stack.start_web()
    with streaming(own_stack, "first", 60) as stream:
        body = {"modelId": "slow", "prompt": "second", "generation": {"maxNewTokens": 5}}
        with own_stack.http() as http, contextlib.suppress(httpx.ReadTimeout):
            http.post("/inference", json=body, timeout=1)
        [queued] = [
            key.decode().removeprefix("cy:req:")
            for key in own_stack.client.scan_iter("cy:req:*")
            if key.decode().removeprefix("cy:req:") != stream.id
        ]
        until(lambda: token_log.snapshot(own_stack.client, queued).last, 5, "the request was let go")
        stream.join()
    until(lambda: worker.lines_of(queued), 10, "the worker came to the task")
    assert {line.get("outcome") for line in worker.lines_of(queued)} <= {"superseded", None}
    assert token_log.snapshot(own_stack.client, queued).text == ""


def test_web_process_killed_and_its_client_resumes_on_another(own_stack: Stack) -> None:
    own_stack.start_worker("w", ["--models", "slow"])
    own_stack.start_web()
    found: list[Event] = []
    body = {"modelId": "slow", "prompt": "p", "generation": {"maxNewTokens": TOKENS}}

    def read_one_by_one() -> None:
        try:
            with own_stack.http() as http, http.stream("POST", "/inference/stream", json=body) as response:
                for event in events(response):
                    if event.data:
                        found.append(event)
        except httpx.HTTPError:
            return

    thread = threading.Thread(target=read_one_by_one)
    thread.start()
    until(lambda: len(found) >= 5, 20, "the stream has begun")
    web = next(process for process in own_stack.processes if process.name == "web")
    [child] = children(web.pid)
    os.kill(child, signal.SIGKILL)
    thread.join(20)
    # gunicorn starts another process; until it listens, connections wait.
    rest = resume(own_stack, found[-1])
    assert text_of(found) + text_of(rest) == expected_text("p", TOKENS)


def children(pid: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_stopping_front_door_leaves_streams_to_resume(own_stack: Stack) -> None:
    own_stack.start_worker("w", ["--models", "slow"])
    web = own_stack.start_web()
    with streaming(own_stack) as stream:
        web.signal(signal.SIGTERM)
        found = stream.join(20)
    assert found[-1].name == "interrupted"
    interrupted = found[-1].json()
    assert interrupted["resumable"] is True
    assert web.wait(20) == 0
    own_stack.start_web()
    last = [event for event in found if event.id][-1]
    assert interrupted["lastEventId"] == last.id
    assert text_of(found) + text_of(resume(own_stack, last)) == expected_text("p", TOKENS)


def test_an_idempotency_key_attaches_to_the_first_request(fake_stack: Stack) -> None:
    body = {"modelId": "slow", "prompt": "p", "generation": {"maxNewTokens": 30}}
    headers = {"Idempotency-Key": "order-1"}
    answers: list[httpx.Response] = []

    def ask() -> None:
        with fake_stack.http() as http:
            answers.append(http.post("/inference", json=body, headers=headers))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    with fake_stack.http() as http:
        later = http.post("/inference", json=body, headers=headers)
        other = http.post("/inference", json={**body, "prompt": "q"}, headers=headers)
        free = http.post("/inference", json=body, headers={"Idempotency-Key": "order-2"})
    assert len({answer.text for answer in [*answers, later]}) == 1
    assert other.status_code == 409
    assert other.json()["error"]["code"] == "IDEMPOTENCY_CONFLICT"
    assert free.json()["id"] != later.json()["id"]


def test_an_idempotency_key_replays_a_stream_and_an_openai_answer(fake_stack: Stack) -> None:
    body = {"modelId": "slow", "prompt": "p", "generation": {"maxNewTokens": 10}}
    headers = {"Idempotency-Key": "stream-1"}
    replies = []
    for _ in range(2):
        with (
            fake_stack.http() as http,
            http.stream("POST", "/inference/stream", json=body, headers=headers) as response,
        ):
            replies.append(list(events(response)))
    assert replies[0] == replies[1]
    chat = {"model": "fake", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3}
    with fake_stack.http() as http:
        url = f"{fake_stack.openai_base}/chat/completions"
        first, second = (http.post(url, json=chat, headers={"Idempotency-Key": "chat-1"}) for _ in range(2))
    assert first.json()["id"] == second.json()["id"]
    assert first.content == second.content

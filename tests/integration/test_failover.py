"""Workers that die, freeze, drain or come late, seen from a client's stream. On the fake engine."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from store.token_log import log as token_log
from store.token_log.entries import Kind
from testing.background_stream import TOKENS, streaming
from testing.fake_text import expected_text
from testing.sse import text_of
from testing.stack import Process, Stack
from testing.waiting import until


def owner_of(stack: Stack, request_id: str) -> Process:
    """The process of the worker that has the request now."""
    opened = [entry for entry in token_log.read(stack.client, request_id) if entry.kind == Kind.OPEN]
    name = opened[-1].json()["worker"].split("@")[0]
    return next(process for process in stack.processes if process.name == name)


@pytest.fixture
def pair(own_stack: Stack) -> Stack:
    """Two workers of the same models, and a front door."""
    for name in ("a", "b"):
        own_stack.spawn_worker(name, ["--models", "slow,fake,paused"])
    for name in ("a", "b"):
        until(lambda n=name: own_stack.find(n), 30, f"worker {name} is ready")
    own_stack.start_web()
    return own_stack


def test_a_killed_worker_s_streams_go_on_exactly(pair: Stack) -> None:
    with streaming(pair, "one") as first, streaming(pair, "two") as second:
        pair.stop(owner_of(pair, first.id), signal.SIGKILL)
        whole = [first.join(), second.join()]
    assert [text_of(found) for found in whole] == [expected_text("one", TOKENS), expected_text("two", TOKENS)]
    for found in whole:
        offsets = [event.json()["choices"][0]["offset"] for event in found if event.data and event.data != "[DONE]"]
        assert offsets == list(range(len(offsets)))
        assert found[-1].data == "[DONE]"


def test_a_frozen_worker_is_replaced_and_refused_when_it_wakes(pair: Stack) -> None:
    with streaming(pair, "one") as stream:
        frozen = owner_of(pair, stream.id)
        os.kill(frozen.pid, signal.SIGSTOP)
        try:
            found = stream.join()
        finally:
            os.kill(frozen.pid, signal.SIGCONT)
    assert text_of(found) == expected_text("one", TOKENS)
    request_id = stream.id

    def refused() -> list[dict]:
        return [line for line in frozen.lines_of(request_id) if line.get("outcome") == "superseded"]

    until(refused, 20, "the frozen worker gave up")
    assert text_of(found) == token_log.snapshot(pair.client, request_id).text


@pytest.mark.full
def test_without_another_worker_the_stream_waits_for_one(own_stack: Stack) -> None:
    only = own_stack.start_worker("only", ["--models", "slow"])
    own_stack.start_web()
    with streaming(own_stack) as stream:
        own_stack.stop(only, signal.SIGKILL)
        count = len(stream.found)
        until(lambda: sum(1 for event in stream.found[count:] if event.comment) >= 3, 20, "comments bridge the wait")
        own_stack.start_worker("late", ["--models", "slow"])
        found = stream.join()
    assert text_of(found) == expected_text("p", TOKENS)


@pytest.mark.full
def test_a_wait_for_a_worker_ends_at_the_deadline(own_stack: Stack) -> None:
    only = own_stack.start_worker("only", ["--models", "slow"])
    own_stack.start_web(CY_LLM_REQUEST_TIMEOUT_SECONDS="4")
    with streaming(own_stack) as stream:
        own_stack.stop(only, signal.SIGKILL)
        found = stream.join(30)
    assert found[-1].name == "error"
    assert found[-1].json()["error"]["details"][0]["type"] == "deadline_exceeded"


def test_a_request_that_kills_two_workers_is_given_up(pair: Stack) -> None:
    with streaming(pair) as stream:
        request_id = stream.id
        first = owner_of(pair, request_id)
        pair.stop(first, signal.SIGKILL)
        until(lambda: owner_of(pair, request_id) is not first, 15, "the other worker took over")
        second = owner_of(pair, request_id)
        pair.stop(second, signal.SIGKILL)
        third = pair.start_worker("c", ["--models", "slow"])
        found = stream.join()
    assert found[-1].name == "error"
    assert found[-1].json()["error"]["details"][0]["type"] == "poison_request"
    assert not third.lines_of(request_id)


def test_a_drained_worker_hands_over_what_is_left(own_stack: Stack) -> None:
    old = own_stack.start_worker("old", ["--models", "slow"], CY_LLM_DRAIN_SECONDS="0.5")
    own_stack.start_worker("new", ["--models", "slow"])
    own_stack.start_web()
    streams_open = []
    for number in range(6):
        with streaming(own_stack, f"p{number}") as stream:
            streams_open.append(stream)
    old.signal(signal.SIGTERM)
    for number, stream in enumerate(streams_open):
        assert text_of(stream.join()) == expected_text(f"p{number}", TOKENS)
    assert old.wait(20) == 0


def test_a_rolling_restart_loses_no_request(pair: Stack) -> None:
    """Requests come all the time while both workers are replaced, one after the other."""
    failures: list[str] = []
    done: list[int] = []
    over = threading.Event()

    def ask(number: int) -> None:
        with pair.http() as http:
            count = 0
            while not over.is_set():
                prompt = f"p{number}-{count}"
                body = {"modelId": "slow", "prompt": prompt, "generation": {"maxNewTokens": 15}}
                response = http.post("/inference", json=body)
                if response.status_code != 200:
                    failures.append(response.text)
                elif response.json()["choices"][0]["text"] != expected_text(prompt, 15):
                    failures.append("wrong text")
                count += 1
            done.append(count)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for name in ("a", "b"):
        old = next(process for process in pair.processes if process.name == name)
        assert pair.stop(old, signal.SIGTERM) == 0
        pair.start_worker(f"{name}2", ["--models", "slow"])
    over.set()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert sum(done) >= 16


def test_a_queued_request_of_a_dead_worker_is_sent_again(own_stack: Stack) -> None:
    """It waits in the queue of a worker that will not come back; another one serves the model."""
    hinted = own_stack.start_worker("hinted", ["--models", "slow"])
    own_stack.start_web()
    os.kill(hinted.pid, signal.SIGSTOP)
    found: list[Any] = []

    def ask() -> None:
        with own_stack.http() as http:
            body = {"modelId": "slow", "prompt": "p", "workerHint": "hinted@test", "generation": {"maxNewTokens": 3}}
            found.append(http.post("/inference", json=body))

    thread = threading.Thread(target=ask)
    thread.start()
    until(lambda: not own_stack.find("hinted"), 10, "the frozen worker is missed")
    own_stack.start_worker("other", ["--models", "slow"])
    thread.join(30)
    hinted.signal(signal.SIGKILL)
    assert found[0].json()["choices"][0]["text"] == expected_text("p", 3)


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_openai_streams_go_on_where_they_were(pair: Stack, path: str) -> None:
    """One id, one time, one role, one end, one usage, and the text of an undisturbed run."""
    lines: list[str] = []
    prompt = {"messages": [{"role": "user", "content": "p"}]} if path.startswith("chat") else {"prompt": "p"}

    def read() -> None:
        body = {"model": "slow", **prompt, "max_tokens": TOKENS, "stream": True}
        body["stream_options"] = {"include_usage": True}
        headers = {"Authorization": "Bearer test-key"}
        url = f"{pair.openai_base}/{path}"
        with pair.http(follow_redirects=True) as http, http.stream("POST", url, json=body, headers=headers) as response:
            lines.extend(line for line in response.iter_lines() if line and not line.startswith(":"))

    thread = threading.Thread(target=read)
    thread.start()
    until(lambda: [info for info in pair.fleet().living if info.in_flight], 20, "a worker has it")
    busy = next(info for info in pair.fleet().living if info.in_flight)
    until(lambda: streams_written(pair), 20, "text was delivered")
    # So that the second run's time is another one.
    time.sleep(1.1)
    pair.stop(next(process for process in pair.processes if f"{process.name}@test" == busy.name), signal.SIGKILL)
    thread.join(30)
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    texts = [choice["delta"].get("content", "") if "delta" in choice else choice["text"] for choice in choices]
    assert "".join(texts) == expected_text("p", TOKENS)
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["length"]
    assert sum("role" in choice.get("delta", {}) for choice in choices) == path.startswith("chat")
    [usage] = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    assert usage["completion_tokens"] == TOKENS


def streams_written(stack: Stack) -> bool:
    return any(stack.client.xlen(key) > 3 for key in stack.client.scan_iter("cy:log:*"))


def test_redis_restarted_with_its_file_loses_nothing(pair: Stack, tmp_path: Path) -> None:
    with streaming(pair, "one") as first, streaming(pair, "two") as second:
        pair.redis.stop()
        pair.redis.start()
        whole = [first.join(), second.join()]
    assert [text_of(found) for found in whole] == [expected_text("one", TOKENS), expected_text("two", TOKENS)]

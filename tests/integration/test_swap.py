"""Several models on one worker, loaded when they are asked for. The engines are fakes: what is tested is who waits for
whom, and that nothing is lost."""

import itertools
import json
import os
import signal
import time
from pathlib import Path

import httpx
import openai
import pytest

from testing.fake_text import expected_text
from testing.stack import KEY, Stack
from testing.waiting import until
from tests.integration.live_models import ask, becomes, status
from tests.integration.swap_stack import LOAD, STAY, Asked, listed, loads, make_stack, swapping

__all__ = ["swapping"]


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def refused(answer: httpx.Response) -> str:
    assert answer.status_code == 503, answer.text
    assert answer.headers["retry-after"]
    return str(answer.json()["error"]["message"])


def test_a_request_waits_while_its_model_takes_the_place_of_another(swapping: Stack) -> None:
    with swapping.http() as http:
        assert {model: status(http, model) for model in "abc"} == {"a": "ready", "b": "unloaded", "c": "unloaded"}
        answer = ask(http, "bee")
        assert answer.headers["x-model-loading"] == "b"
        assert text_of(answer) == expected_text("x", 3)
        assert "x-model-loading" not in ask(http, "b").headers
        assert {model: status(http, model) for model in "abc"} == {"a": "unloaded", "b": "ready", "c": "unloaded"}


def test_what_runs_ends_whole_and_what_comes_after_waits_its_turn(swapping: Stack) -> None:
    """M01: a swap cuts nobody, and the model that was taken away comes back to those who wait for it."""
    until(lambda: loads(swapping, "a") == 1, 10, "a is loaded")
    long = Asked(swapping, "a", tokens=200)
    until(lambda: swapping.fleet().living[0].in_flight == 1, 10, "the long answer runs")
    other = Asked(swapping, "b")
    with swapping.http() as http:
        becomes(http, "a", "draining")
    later = [Asked(swapping, "a", prompt=f"later {number}") for number in range(10)]
    assert text_of(long.result()) == expected_text("x", 200)
    assert text_of(other.result()) == expected_text("x", 3)
    assert [text_of(each.result()) for each in later] == [expected_text(f"later {number}", 3) for number in range(10)]
    assert long.at < other.at < min(each.at for each in later)
    assert loads(swapping, "a") == 2


def test_requests_to_and_fro_cost_few_loads(swapping: Stack) -> None:
    """M02: models are served by turns, not in the order of arrival, and nobody waits for ever."""
    began = time.monotonic()
    asked = []
    # Longer than several stays: without them each of these would find its model and push another one out.
    for model in itertools.chain.from_iterable("abaacab" for _ in range(10)):
        asked.append(Asked(swapping, model))
        time.sleep(STAY / 8)
    assert [each.result().status_code for each in asked] == [200] * 70
    loaded = sum(loads(swapping, model) for model in "abc")
    turns = (time.monotonic() - began) / (STAY + LOAD)
    # One model was there at the start; in arrival order it would be some 60.
    assert loaded <= turns + 2, (loaded, turns)


@pytest.mark.full
def test_probes_and_lists_keep_no_model_and_an_idle_one_goes(tmp_path: Path) -> None:
    stack = make_stack(tmp_path, CY_LLM_SWAP_IDLE_SECONDS="1.5")
    try:
        stack.start_worker("w1", ["--models", "a,b", "--swap"])
        stack.start_web()
        with stack.http() as http:
            # An answer that takes longer than that is no idleness.
            assert text_of(ask(http, "a", tokens=150)) == expected_text("x", 150)

            def gone() -> bool:
                assert http.get("/health").status_code == 200
                return status(http, "a") == "unloaded"

            until(gone, 20, "an idle model is unloaded although it is looked at")
            assert text_of(ask(http, "a")) == expected_text("x", 3)
    finally:
        stack.close()


@pytest.mark.full
def test_the_wait_has_a_bound_and_the_other_model_stays(tmp_path: Path) -> None:
    stack = make_stack(tmp_path, CY_LLM_SWAP_WAIT_SECONDS="2")
    try:
        stack.start_worker("w1", ["--models", "a,b", "--swap"])
        stack.start_web()
        long = Asked(stack, "a", tokens=500)
        until(lambda: stack.fleet().living[0].in_flight == 1, 10, "the long answer runs")
        with stack.http() as http:
            message = refused(ask(http, "b"))
            assert "was not loaded within 2 seconds" in message
            # Nobody waits any more: what was to give way stays, before its long answer has ended.
            becomes(http, "a", "ready")
            assert long.is_alive()
            assert text_of(ask(http, "a")) == expected_text("x", 3)
            assert text_of(long.result()) == expected_text("x", 500)
            # The refused request is in no queue any more, and loads nothing.
            time.sleep(2 * STAY)
            assert status(http, "a") == "ready"
            assert loads(stack, "b") == 0
    finally:
        stack.close()


@pytest.mark.full
def test_a_client_that_left_loads_nothing(swapping: Stack) -> None:
    with swapping.http() as http:
        long = Asked(swapping, "a", tokens=200)
        until(lambda: swapping.fleet().living[0].in_flight == 1, 10, "the long answer runs")
        with http.stream("POST", "/inference/stream", json={"modelId": "b", "prompt": "x"}) as stream:
            assert stream.headers["x-model-loading"] == "b"
            becomes(http, "a", "draining")
        becomes(http, "a", "ready")
        assert text_of(long.result()) == expected_text("x", 200)
        time.sleep(STAY)
        assert (status(http, "a"), loads(swapping, "b")) == ("ready", 0)


@pytest.mark.full
def test_openai_clients_wait_with_comments_and_see_what_can_be_asked(swapping: Stack) -> None:
    assert listed(swapping) == {"a", "b", "c", "bee"}
    long = Asked(swapping, "a", tokens=120)
    until(lambda: swapping.fleet().living[0].in_flight == 1, 10, "the long answer runs")
    body = {"model": "b", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3, "stream": True}
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.stream(
        "POST", f"{swapping.openai_base}/chat/completions", json=body, headers=headers, timeout=60
    ) as raw:
        assert (raw.status_code, raw.headers["x-model-loading"]) == (200, "b")
        lines = list(raw.iter_lines())
    assert any(line.startswith(":") for line in lines), "keep-alive comments while the model loads"
    assert lines[-2] == "data: [DONE]" or "data: [DONE]" in lines
    long.result()
    with swapping.openai() as client:
        chat = client.chat.completions.create(model="c", messages=[{"role": "user", "content": "x"}], max_tokens=3)
    assert chat.choices[0].message.content == expected_text("x", 3)


@pytest.mark.full
def test_a_pinned_model_stays_and_the_others_asker_is_told(tmp_path: Path) -> None:
    stack = make_stack(tmp_path)
    try:
        stack.start_worker("w1", ["--models", "alone,pinned,small", "--swap"])
        stack.start_web()
        with stack.http() as http:
            assert {model: status(http, model) for model in ("alone", "pinned", "small")} == {
                "alone": "unloaded",
                "pinned": "ready",
                "small": "ready",
            }
            assert "Model 'alone' cannot be loaded now" in refused(ask(http, "alone"))
            assert "cannot be loaded now" in refused(ask(http, "alone"))
            assert status(http, "alone") == "failed"
            [worker] = http.get("/models/alone").json()["workers"]
            assert worker["reason"] == (
                "model 'alone' does not fit: it takes 70% of the memory; pinned (70%) stays loaded (pinned)."
            )
            assert "alone" not in listed(stack)
            for model in ("pinned", "small"):
                assert text_of(ask(http, model)) == expected_text("x", 3)
                assert loads(stack, model) == 1
    finally:
        stack.close()


def test_a_model_that_cannot_be_loaded_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    stack = make_stack(tmp_path)
    try:
        stack.models["models"]["broken"] = {"modelPath": "none", "engine": "no-such-engine"}
        stack.config.write_text(json.dumps(stack.models))
        stack.start_worker("w1", ["--models", "a,broken", "--swap"])
        stack.start_web()
        waiting = [Asked(stack, "broken") for _ in range(5)]
        for each in waiting:
            assert refused(each.result()) == "Model 'broken' cannot be loaded now"
        with stack.http() as http:
            assert "unknown engine" in http.get("/models/broken").json()["workers"][0]["reason"]
            assert text_of(ask(http, "a")) == expected_text("x", 3)
    finally:
        stack.close()


@pytest.mark.full
def test_asleep_and_awake(tmp_path: Path) -> None:
    """M07, with an engine that only says that it sleeps: it refuses to be asked while it does."""
    stack = make_stack(tmp_path)
    try:
        worker = stack.start_worker("w1", ["--models", "sleepy,a,b", "--swap"])
        stack.start_web()
        with stack.http() as http:
            assert text_of(ask(http, "a")) == expected_text("x", 3)
            assert status(http, "sleepy") == "asleep"
            assert "sleepy" in listed(stack)
            waiting = [Asked(stack, "sleepy", prompt=str(number)) for number in range(10)]
            assert [text_of(each.result()) for each in waiting] == [expected_text(str(n), 3) for n in range(10)]
            said = [line["message"] for line in worker.lines() if line.get("model") == "sleepy"]
            assert said.count("Loading model") == 1 and said.count("Model is awake") == 1
            # A changed entry is loaded anew, not woken as it was.
            assert text_of(ask(http, "a")) == expected_text("x", 3)
            assert http.patch("/models/sleepy", json={"startSeconds": 0, "maxModelLen": 64}).status_code == 200
            becomes(http, "sleepy", "unloaded")
            assert text_of(ask(http, "sleepy")) == expected_text("x", 3)
            assert http.get("/models/sleepy").json()["config"]["maxModelLen"] == 64
    finally:
        stack.close()


@pytest.mark.full
def test_an_operator_loads_and_takes_away(swapping: Stack) -> None:
    with swapping.http() as http:
        assert http.post("/models/c/load").json()["workers"] == ["w1@test"]
        becomes(http, "c", "ready")
        assert status(http, "a") == "unloaded"
        # Taken away, it is not brought by a request.
        assert http.post("/models/a/unload").status_code == 202
        becomes(http, "a", "unavailable")
        assert refused(ask(http, "a")) == "Model 'a' has no running worker"
        assert http.post("/models/c/unload").status_code == 202
        becomes(http, "c", "unavailable")
        assert text_of(ask(http, "b")) == expected_text("x", 3)
        assert http.post("/models/a/load").status_code == 202
        becomes(http, "a", "ready")


@pytest.mark.full
def test_a_model_with_a_worker_of_its_own_is_not_swapped(swapping: Stack) -> None:
    swapping.start_worker("w2", ["--models", "b"])
    with swapping.http() as http:
        for _ in range(3):
            answer = ask(http, "b")
            assert text_of(answer) == expected_text("x", 3)
            assert "x-model-loading" not in answer.headers
        assert status(http, "a") == "ready"
        assert loads(swapping, "b") == 0


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_what_waits_outlives_its_worker(swapping: Stack, number: int) -> None:
    """M01: the worker ends in the middle of a swap; another one goes on with what ran and brings what is waited for."""
    worker = swapping.processes[0]
    long = Asked(swapping, "a", tokens=150)
    until(lambda: swapping.fleet().living[0].in_flight == 1, 10, "the long answer runs")
    waiting = [Asked(swapping, "b", prompt=str(each)) for each in range(5)]
    with swapping.http() as http:
        becomes(http, "a", "draining")
    worker.signal(number)
    swapping.start_worker("w2", ["--models", "a,b,c", "--swap"])
    assert text_of(long.result()) == expected_text("x", 150)
    assert [text_of(each.result()) for each in waiting] == [expected_text(str(each), 3) for each in range(5)]


@pytest.mark.full
def test_two_workers_share_the_models(swapping: Stack) -> None:
    """What the one has, the other does not load; the one that is idle comes first."""
    swapping.start_worker("w2", ["--models", "a,b,c", "--swap"])
    with swapping.http() as http:
        time.sleep(STAY)
        long = Asked(swapping, "a", tokens=300)
        until(lambda: any(worker.in_flight for worker in swapping.fleet().living), 10, "the long answer runs")
        answers = [Asked(swapping, "b") for _ in range(8)]
        assert [text_of(each.result()) for each in answers] == [expected_text("x", 3)] * 8
        assert long.is_alive(), "the busy worker gave way although another was idle"
        assert loads(swapping, "b") == 1
        assert status(http, "a") == "ready"
        long.result()


@pytest.mark.full
def test_frozen_redis_loses_nobody(swapping: Stack) -> None:
    long = Asked(swapping, "a", tokens=150)
    until(lambda: swapping.fleet().living[0].in_flight == 1, 10, "the long answer runs")
    waiting = [Asked(swapping, model) for model in "bcb"]
    queued = [f"gpu-infer.{model}\x06\x169" for model in "bc"]
    until(lambda: sum(swapping.client.llen(name) for name in queued) == 3, 10, "they wait in their queues")
    os.kill(swapping.redis.pid, signal.SIGSTOP)
    time.sleep(2)
    os.kill(swapping.redis.pid, signal.SIGCONT)
    assert [text_of(each.result()) for each in waiting] == [expected_text("x", 3)] * 3
    assert text_of(long.result()) == expected_text("x", 150)
    with swapping.http() as http:
        assert text_of(ask(http, "c")) == expected_text("x", 3)


def test_swap_needs_the_names_of_models(tmp_path: Path) -> None:
    stack = make_stack(tmp_path)
    try:
        worker = stack.spawn_worker("w1", ["--swap"])
        assert worker.wait(60) != 0
        assert "--swap needs --models" in worker.tail()
    finally:
        stack.close()


def test_openai_client_gets_the_reason(tmp_path: Path) -> None:
    stack = make_stack(tmp_path)
    try:
        stack.start_worker("w1", ["--models", "pinned,alone", "--swap"])
        stack.start_web()
        with stack.openai() as client, pytest.raises(openai.InternalServerError, match="'alone' cannot be loaded now"):
            client.chat.completions.create(model="alone", messages=[{"role": "user", "content": "x"}])
    finally:
        stack.close()

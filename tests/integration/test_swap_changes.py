"""``--swap`` while operators change things, beside other workers, and where several models wait at once."""

import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from testing.fake_text import expected_text
from testing.rpc_client import WIRE, RpcClient
from testing.stack import KEY, Stack
from testing.waiting import until
from tests.integration.live_models import ask, becomes
from tests.integration.swap_stack import MODELS, STAY, Asked, loads, make_stack

pytestmark = pytest.mark.full

_SMALL = {**MODELS["models"]["small"], "sleepMode": False}
_HALF = {**MODELS["models"]["a"], "gpuMemoryUtilization": 0.45}


@contextlib.contextmanager
def workers(folder: Path, models: dict[str, Any] | None = None, /, *names: str, **env: str) -> Iterator[Stack]:
    """A stack with swapping workers ``w1``, ``w2``, …, one for each string of models."""
    stack = make_stack(folder, **env)
    stack.models = {**stack.models, "models": {**stack.models["models"], **(models or {})}}
    stack.config.write_text(json.dumps(stack.models))
    try:
        for number, each in enumerate(names, 1):
            stack.start_worker(f"w{number}", ["--models", each, "--swap"])
        stack.start_web()
        yield stack
    finally:
        stack.close()


def states(stack: Stack, worker: str = "w1@test") -> dict[str, str]:
    found = [each for each in stack.fleet().living if each.name == worker]
    return {model: state["state"] for each in found for model, state in each.model_states.items()}


def running(stack: Stack, count: int = 1) -> None:
    until(lambda: sum(each.in_flight for each in stack.fleet().living) >= count, 10, f"{count} requests run")


def good(asked: Asked, tokens: int = 3) -> bool:
    answer = asked.result()
    return answer.status_code == 200 and answer.json()["choices"][0]["text"] == expected_text("x", tokens)


def test_a_model_that_is_taken_away_while_it_is_waited_for(tmp_path: Path) -> None:
    """Those who wait for it are told, and the others' models come as ever."""
    with workers(tmp_path, {}, "a,b,c", CY_LLM_SWAP_MIN_STAY_SECONDS="3") as stack, stack.http() as http:
        waiting = Asked(stack, "b")
        until(lambda: stack.client.llen("gpu-infer.b\x06\x169") == 1, 10, "the request waits in its queue")
        assert http.post("/models/b/unload").status_code == 202
        assert waiting.result().status_code == 503
        becomes(http, "b", "unavailable")
        assert ask(http, "c").status_code == 200


def test_one_that_an_operator_drains_is_waited_for(tmp_path: Path) -> None:
    """Its memory is taken until its last answer has ended."""
    with workers(tmp_path, {}, "a,b") as stack, stack.http() as http:
        long = Asked(stack, "a", tokens=200)
        running(stack)
        assert http.post("/models/a/unload").status_code == 202
        becomes(http, "a", "draining")
        other = Asked(stack, "b")
        assert good(long, 200) and good(other)
        assert long.at < other.at


def test_a_load_of_what_is_there_brings_nothing_back_later(tmp_path: Path) -> None:
    with workers(tmp_path, {}, "a,b") as stack, stack.http() as http:
        assert http.post("/models/a/load").status_code == 202
        until(lambda: ask(http, "b").status_code == 200, 20, "b answers")
        time.sleep(3 * STAY)
        assert states(stack) == {"a": "unloaded", "b": "ready"}


def test_the_first_models_may_be_broken(tmp_path: Path) -> None:
    broken = {"modelPath": "none", "engine": "no-such-engine"}
    with workers(tmp_path, {"broken": broken}, "broken,a,b") as stack, stack.http() as http:
        assert states(stack) == {"broken": "failed", "a": "ready", "b": "unloaded"}
        assert ask(http, "a").status_code == 200
        assert ask(http, "broken").status_code == 503


def test_one_that_needs_several_others_to_go_gets_its_turn(tmp_path: Path) -> None:
    models = {"one": _HALF, "two": _HALF, "three": _HALF, "big": {**_HALF, "gpuMemoryUtilization": 0.9}}
    with workers(tmp_path, models, "one,two,three,big") as stack:
        ends = time.monotonic() + 60
        big = Asked(stack, "big")
        crowd: list[Asked] = []
        while big.is_alive() and time.monotonic() < ends:
            crowd += [Asked(stack, model) for model in ("one", "two", "three")]
            time.sleep(0.2)
        assert good(big)
        # Two stays, and the loads between.
        assert big.seconds < 10 * STAY
        assert all(good(each) for each in crowd)


def test_one_that_fits_does_not_wait_for_others_to_change_places(tmp_path: Path) -> None:
    with workers(tmp_path, {"x": _SMALL}, "a,b,x", CY_LLM_SWAP_IDLE_SECONDS="2") as stack:
        until(lambda: states(stack)["x"] == "unloaded", 20, "x is idle and gone")
        long = Asked(stack, "a", tokens=400)
        running(stack)
        until(lambda: states(stack)["a"] == "ready", 10, "a is there")
        other = Asked(stack, "b")
        until(lambda: states(stack)["a"] == "draining", 20, "a gives way to b")
        small = Asked(stack, "x")
        assert good(small)
        assert long.is_alive() and other.is_alive()
        assert good(long, 400) and good(other)


def test_two_busy_workers_do_not_both_make_room(tmp_path: Path) -> None:
    with workers(tmp_path, {}, "a,b,c", "c,b,a") as stack:
        time.sleep(STAY)
        long = [Asked(stack, "a", tokens=400), Asked(stack, "c", tokens=400)]
        running(stack, 2)
        other = Asked(stack, "b")
        assert all(good(each, 400) for each in long) and good(other)
        assert loads(stack, "b") == 1
        assert len([worker for worker in ("w1@test", "w2@test") if "ready" in states(stack, worker).values()]) == 2


def test_a_worker_that_stops_leaves_what_waits_to_others(tmp_path: Path) -> None:
    """It has a long answer to finish, and loads nothing meanwhile, although it could sooner than the other."""
    with workers(tmp_path, {}, "small,a,b", CY_LLM_SWAP_MIN_STAY_SECONDS="0.3") as stack:
        stack.start_worker("w2", ["--models", "c,b", "--swap"], CY_LLM_SWAP_MIN_STAY_SECONDS="4")
        long = Asked(stack, "small", tokens=500)
        running(stack)
        stack.processes[0].signal(signal.SIGTERM)
        until(lambda: any(each.state == "draining" for each in stack.fleet().living), 10, "w1 is draining")
        other = Asked(stack, "b")
        assert good(other)
        assert states(stack, "w2@test")["b"] == "ready"
        assert {model: state for model, state in states(stack).items() if model != "small"} == {
            "a": "ready",
            "b": "unloaded",
        }
        assert long.is_alive()
        assert good(long, 500)


def test_a_second_request_of_a_grpc_call_that_needs_a_load(tmp_path: Path) -> None:
    """What can be told before the first message is; later a request is served like any other."""
    with workers(tmp_path, {}, "a,b") as stack:
        stack.start_grpc()
        with grpc.insecure_channel(f"127.0.0.1:{stack.grpc_port}") as channel:
            client = RpcClient(tmp_path / "proto", WIRE, channel, KEY)
            first, second = (
                {"model_id": model, "prompt": "x", "generation": {"max_new_tokens": 3}} for model in ("a", "b")
            )
            answered = threading.Event()

            def one_after_the_other() -> Iterator[dict[str, Any]]:
                yield first
                assert answered.wait(30)
                yield second

            ends = 0
            for message in client.call("AiInference", "StreamPredict", one_after_the_other(), timeout=60):
                assert message.error.code == ""
                ends += message.end_of_stream
                if message.end_of_stream:
                    answered.set()
            assert ends == 2
            # From then on b is there, and a is to be brought.
            call = client.call("AiInference", "StreamPredict", iter([first]), timeout=60)
            metadata = dict(call.initial_metadata())
            assert metadata["x-model-loading"] == "a"
            assert "".join(message.chunk for message in call) == expected_text("x", 3)


def test_a_forced_unload_in_the_middle_of_a_swap(tmp_path: Path) -> None:
    """M01: it says how many answers it ends, they end with an error that says so, and the other model comes."""
    with workers(tmp_path, {}, "a,b") as stack, stack.http() as http:
        long = [Asked(stack, "a", tokens=1000) for _ in range(2)]
        running(stack, 2)
        other = Asked(stack, "b")
        becomes(http, "a", "draining")
        answer = http.post("/models/a/unload", json={"force": True}).json()
        assert (answer["status"], answer["forced"]) == ("draining", True)
        for each in long:
            refused = each.result()
            assert refused.status_code == 503
            assert "unloaded model 'a' by force" in refused.json()["error"]["message"]
        assert good(other)
        becomes(http, "a", "unavailable")

"""Answers that come as a whole, whose worker is told to stop, or that give way to a person: they go on where they
were."""

import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from settings import ROOT
from store.token_log import log as token_log
from store.token_log.entries import Kind, Reason
from tasks.worker.inference.portions import decode_portions
from testing import batches
from testing.stack import KEY, Stack
from testing.waiting import until
from tests.engine.failover import both_ready, two_workers

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]

_DEMO = {
    "modelPath": str(ROOT / "models" / "demo"),
    "enforceEager": True,
    "kvCacheMemoryBytes": 2**27,
    "maxModelLen": 1024,
    "toolCallParser": "hermes",
}
_ROWS = {
    "type": "object",
    "properties": {"rows": {"type": "array", "minItems": 90, "maxItems": 90, "items": {"enum": [0, 1, 22, 333]}}},
    "required": ["rows"],
    "additionalProperties": False,
}
_CHAT = {"messages": [{"role": "user", "content": "Tell a story"}], "max_tokens": 900}
_FORM = {"type": "json_schema", "json_schema": {"name": "rows", "schema": _ROWS, "strict": True}}
_TOOL = {"type": "function", "function": {"name": "f", "parameters": _ROWS}}
_NAMED = {"type": "function", "function": {"name": "f"}}
#: No two runs say the same: what is said twice was not made twice.
_DIFFERENT = {"model": "demo", "temperature": 1.0, "top_p": 1.0, "return_token_ids": True}
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/chat/completions", {**_CHAT, "ignore_eos": True}),
    "text": ("/completions", {"prompt": "Once upon a time", "max_tokens": 900, "ignore_eos": True}),
    "JSON schema": ("/chat/completions", {**_CHAT, "response_format": _FORM}),
    "tool call": ("/chat/completions", {**_CHAT, "tools": [_TOOL], "tool_choice": _NAMED}),
    "penalties": ("/chat/completions", {**_CHAT, "ignore_eos": True, "presence_penalty": 0.5}),
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with two_workers(tmp_path_factory.mktemp("whole"), "demo", _DEMO, CY_LLM_DRAIN_SECONDS="0") as stack:
        yield stack


def ask(stack: Stack, path: str, body: dict[str, Any], request_id: str) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {KEY}", "X-Request-Id": request_id}
    answer = httpx.post(
        f"{stack.openai_base}{path}", json={**_DIFFERENT, **body}, headers=headers, timeout=60, trust_env=False
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def entries(stack: Stack, answer_id: str) -> list[Any]:
    return token_log.read(stack.client, f"gen-{answer_id.partition('-')[2]}")


def stop_the_worker_of_it(stack: Stack, known: set[bytes]) -> None:
    """Tell the worker to stop that has opened the one new log, a moment after that."""

    def opened() -> Any:
        new = set(stack.client.keys("cy:log:gen-*")) - known
        return next(iter(stack.client.xrange(next(iter(new)), count=1)), None) if new else None

    _, first = until(opened, 20, "it is begun")
    time.sleep(0.15)
    name = json.loads(first[b"d"])["worker"].partition("@")[0]
    process = next(each for each in reversed(stack.processes) if each.name == name)
    process.signal(signal.SIGTERM)
    process.wait(30)
    stack.spawn_worker(name)


def drained(stack: Stack, path: str, body: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """Return an answer whose worker stopped in the middle of it, and its log."""
    for attempt in range(6):
        both_ready(stack)
        known = set(stack.client.keys("cy:log:gen-*"))
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask, stack, path, body, f"whole-{attempt}")
            stop_the_worker_of_it(stack, known)
            answer = asked.result()
        log = entries(stack, answer["id"])
        if any(entry.kind == Kind.RELEASE and entry.tokens for entry in log):
            return answer, log
    raise AssertionError("each was at its end before its worker stopped")


def kept(log: list[Any]) -> tuple[int, ...]:
    """Return the tokens that the first worker left."""
    released = next(entry for entry in log if entry.kind == Kind.RELEASE and entry.tokens)
    return tuple(token for portion in decode_portions(released.tokens.decode()) for token in portion.tokens)


@pytest.mark.parametrize("kind", list(BODIES))
def test_it_goes_on_with_another_worker(stack: Stack, kind: str) -> None:
    path, body = BODIES[kind]
    both_ready(stack)
    undisturbed = ask(stack, path, body, "whole")
    answer, log = drained(stack, path, body)
    [choice], [usual] = answer["choices"], undisturbed["choices"]
    tokens = tuple(choice["token_ids"])
    assert len(kept(log)) > 1 and tokens[: len(kept(log))] == kept(log)
    assert len(tokens) == answer["usage"]["completion_tokens"] > len(kept(log))
    assert choice["finish_reason"] == usual["finish_reason"]
    assert answer["usage"]["prompt_tokens"] == undisturbed["usage"]["prompt_tokens"]
    end = log[-1].json()
    assert end["usage"] == {name: answer["usage"][name] for name in end["usage"]}
    if kind == "JSON schema":
        assert len(json.loads(choice["message"]["content"])["rows"]) == 90
    elif kind == "tool call":
        [call] = choice["message"]["tool_calls"]
        assert len(json.loads(call["function"]["arguments"])["rows"]) == 90
    else:
        assert answer["usage"]["completion_tokens"] == 900


def test_measures_of_tokens_are_made_in_one_piece(stack: Stack) -> None:
    """An answer with logprobs begins anew, and tells those of its own tokens."""
    for _ in range(6):
        both_ready(stack)
        known = set(stack.client.keys("cy:log:gen-*"))
        body = {**_CHAT, "ignore_eos": True, "logprobs": True}
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask, stack, "/chat/completions", body, "measured")
            stop_the_worker_of_it(stack, known)
            answer = asked.result()
        log = entries(stack, answer["id"])
        if any(entry.kind == Kind.RELEASE for entry in log):
            break
    else:
        raise AssertionError("each was at its end before its worker stopped")
    assert not any(entry.kind == Kind.RELEASE and entry.tokens for entry in log)
    measured = answer["choices"][0]["logprobs"]["content"]
    assert len(measured) == 900 and not any(each["logprob"] == 0.0 and not each["token"] for each in measured)


def test_a_line_of_a_batch_goes_on_after_it_gave_way(stack: Stack) -> None:
    both_ready(stack)
    stack.spawn_background()
    text = "\n".join(
        batches.line(
            f"r{n}", f"p{n}", model="demo", max_tokens=900, ignore_eos=True, temperature=1, return_token_ids=True
        )
        for n in range(24)
    )
    with stack.openai() as sdk:
        made = batches.create(sdk, text)
        until(lambda: sum(worker.background for worker in stack.fleet().living) > 8, 60, "its lines run")
        sdk.chat.completions.create(model="demo", messages=[{"role": "user", "content": "x"}], max_tokens=2)
        done = batches.finish(sdk, made.id, 120)
        assert done.request_counts is not None and done.request_counts.completed == 24
        answers = [result["response"]["body"] for result in batches.results(sdk, done.output_file_id)]
    gave_way = 0
    for answer in answers:
        log = entries(stack, answer["id"])
        reasons = [entry.json()["reason"] for entry in log if entry.kind == Kind.RELEASE and entry.tokens]
        if not reasons:
            continue
        assert set(reasons) == {Reason.PREEMPTED}
        gave_way += 1
        [choice] = answer["choices"]
        assert tuple(choice["token_ids"])[: len(kept(log))] == kept(log)
        assert answer["usage"]["completion_tokens"] == 900
    assert gave_way > 0
    assert done.usage is not None and done.usage.output_tokens == 24 * 900

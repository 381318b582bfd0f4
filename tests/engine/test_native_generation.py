"""Conversations and sampling of the native interface on real vLLM: over HTTP, WebSocket and gRPC, and over a kill."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from testing import tool_model, websocket
from testing.rpc_client import WIRE, RpcClient
from testing.sse import events, text_of
from testing.stack import KEY, Stack
from testing.tool_model import transcripts
from testing.waiting import until
from tests.engine.conftest import serving

pytestmark = [pytest.mark.full, pytest.mark.timeout(300)]

NAME = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "My name is Bo."},
    {"role": "assistant", "content": "Hello Bo."},
    {"role": "user", "content": "What is my name?"},
]
COUNT = [{"role": "user", "content": transcripts.COUNT}]
ROWS = {
    "type": "object",
    "properties": {"rows": {"type": "array", "minItems": 40, "maxItems": 40, "items": {"enum": [0, 1, 22, 333]}}},
    "required": ["rows"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "rows", "schema": ROWS}}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    # Without a parser of thoughts: the native interface tells what the model says.
    entry = {name: value for name, value in tool_model.ENTRY.items() if name != "reasoningParser"}
    # With 16 bits what goes on behind a seam may fall otherwise between two equals.
    entry["dtype"] = "float32"
    models = {"tools": entry, "stepped": {**entry, "engine": "cuda-vllm"}}
    with serving(tmp_path_factory.mktemp("native"), models) as stack:
        stack.start_grpc()
        yield stack


@pytest.fixture
def http(stack: Stack) -> Iterator[httpx.Client]:
    with stack.http() as client:
        yield client


@pytest.fixture
def rpc(stack: Stack, tmp_path: Path) -> Iterator[RpcClient]:
    with grpc.insecure_channel(f"127.0.0.1:{stack.grpc_port}") as channel:
        yield RpcClient(tmp_path, WIRE, channel, KEY)


def body(messages: Any = COUNT, model: str = "tools", **generation: Any) -> dict[str, Any]:
    values = {"temperature": 0, "maxNewTokens": 400, **generation}
    return {"modelId": model, "messages": messages, "generation": values}


def _deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels // 2):
        schema = {"type": "object", "properties": {"a": schema}}
    return {"type": "json_schema", "json_schema": {"schema": schema}}


def choice(http: httpx.Client, asked: dict[str, Any]) -> tuple[str, str]:
    answer = http.post("/inference", json=asked)
    assert answer.status_code == 200, answer.text
    [found] = answer.json()["choices"]
    return found["text"], found["finish_reason"]


def test_a_conversation_over_every_face(stack: Stack, http: httpx.Client, rpc: RpcClient, raw: httpx.Client) -> None:
    said, _ = choice(http, body(NAME))
    assert said.endswith("Your name is Bo.")
    # All of it is the prompt, as it is there.
    usage = http.get(f"/inference/{http.post('/inference', json=body(NAME)).json()['id']}").json()["usage"]
    there = raw.post("/chat/completions", json={"model": "tools", "messages": NAME, "max_tokens": 1}).json()
    assert usage["prompt_tokens"] == there["usage"]["prompt_tokens"]
    with http.stream("POST", "/inference/stream", json=body(NAME)) as response:
        assert text_of(list(events(response))) == said
    with websocket.socket(stack) as ws:
        websocket.send(ws, "start", ref="r", request=body(NAME))
        frames = websocket.until_done(ws)
        assert websocket.text_of(frames, frames[-1]["id"]) == said
    generation = {"max_new_tokens": 400, "temperature": 0.0}
    assert spoken(rpc, messages=NAME, generation=generation) == said


def test_sampling_over_grpc(http: httpx.Client, rpc: RpcClient) -> None:
    generation: dict[str, Any] = {"max_new_tokens": 400, "temperature": 0.0}
    stopped = {**generation, "stop": ["77", "30"]}
    assert spoken(rpc, messages=COUNT, generation=stopped) == choice(http, body(stop=["77", "30"]))[0]
    formed = {**generation, "max_new_tokens": 2000, "response_format": json.dumps(FORM)}
    assert len(json.loads(spoken(rpc, messages=COUNT, generation=formed))["rows"]) == 40
    counted = {**generation, "presence_penalty": 1.0, "frequency_penalty": 0.5}
    expected = choice(http, body(presencePenalty=1.0, frequencyPenalty=0.5))[0]
    assert spoken(rpc, messages=COUNT, generation=counted) == expected
    sampled = {**generation, "temperature": 2.0, "top_p": 1.0, "seed": 7, "max_new_tokens": 40}
    expected = choice(http, body(temperature=2.0, topP=1.0, seed=7, maxNewTokens=40))[0]
    assert spoken(rpc, messages=COUNT, generation=sampled) == expected
    for narrow in ({"top_k": 1}, {"min_p": 1.0}):
        greedy = spoken(rpc, messages=COUNT, generation={**generation, "max_new_tokens": 40})
        assert spoken(rpc, messages=COUNT, generation={**sampled, **narrow}) == greedy
    for wrong in ({"response_format": "{"}, {"response_format": '{"type": "yaml"}'}):
        with pytest.raises(grpc.RpcError) as raised:
            spoken(rpc, messages=COUNT, generation=wrong)
        assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError):
        spoken(rpc, messages=COUNT, prompt="x", generation=generation)


def spoken(rpc: RpcClient, **request: Any) -> str:
    """The text of an answer."""
    answers = rpc.call("AiInference", "StreamPredict", iter([{"model_id": "tools", **request}]))
    return "".join(answer.chunk for answer in answers)


def test_one_message_is_a_prompt(http: httpx.Client) -> None:
    prompt = {**body(), "prompt": transcripts.COUNT}
    del prompt["messages"]
    assert choice(http, prompt) == choice(http, body())
    parts = [{"type": "text", "text": transcripts.COUNT[:10]}, {"type": "text", "text": transcripts.COUNT[10:]}]
    assert "80" in choice(http, body([{"role": "user", "content": parts}]))[0]


@pytest.mark.parametrize("model", ["tools", "stepped"])
def test_an_answer_ends_at_a_text(http: httpx.Client, model: str) -> None:
    for stop in ("30", ["77", "30"]):
        text, reason = choice(http, body(model=model, stop=stop))
        assert reason == "stop" and text.endswith("29\n")
    with http.stream("POST", "/inference/stream", json=body(model=model, stop="30")) as response:
        assert text_of(list(events(response))) == text


@pytest.mark.parametrize("model", ["tools", "stepped"])
def test_an_answer_has_a_form(http: httpx.Client, model: str) -> None:
    text, reason = choice(http, body(model=model, responseFormat=FORM, maxNewTokens=2000))
    assert reason == "stop" and len(json.loads(text)["rows"]) == 40
    text, reason = choice(http, body(model=model, responseFormat={"type": "json_object"}, maxNewTokens=2000))
    assert reason in ("stop", "length") and text.startswith("{")
    assert choice(http, body(model=model, responseFormat={"type": "text"})) == choice(http, body(model=model))


def test_sampling_reaches_the_engine(http: httpx.Client) -> None:
    story = [{"role": "user", "content": "hm"}]

    def sampled(**values: Any) -> str:
        return choice(http, body(story, **{"temperature": 2.0, "topP": 1.0, "maxNewTokens": 60, **values}))[0]

    greedy = sampled(temperature=0)
    assert sampled(topK=1) == sampled(minP=1.0) == greedy
    assert sampled(seed=5) == sampled(seed=5) and len({sampled(seed=seed) for seed in range(4)}) > 1
    for name in ("presencePenalty", "frequencyPenalty"):
        assert sampled(seed=5, maxNewTokens=200, **{name: 2.0}) != sampled(seed=5, maxNewTokens=200)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"prompt": "x"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "x"}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 7}]}]}, "messages.0.content.0.text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "word " * 9000}]}, "messages"),
        ({"generation": {"stop": ""}}, "generation.stop"),
        ({"generation": {"stop": ["a"] * 17}}, "generation.stop"),
        ({"generation": {"topK": -1}}, "generation.topK"),
        ({"generation": {"minP": 1.5}}, "generation.minP"),
        ({"generation": {"seed": 2**63}}, "generation.seed"),
        ({"generation": {"presencePenalty": 3}}, "generation.presencePenalty"),
        ({"generation": {"responseFormat": _deep(101)}}, "generation.responseFormat.json_schema.schema"),
        ({"generation": {"responseFormat": _deep(900)}}, "generation.responseFormat.json_schema.schema"),
        ({"generation": {"responseFormat": {"type": "yaml"}}}, "generation.responseFormat.type"),
        ({"generation": {"responseFormat": {"type": "json_schema"}}}, "generation.responseFormat.json_schema"),
        (
            {"generation": {"responseFormat": {"type": "json_schema", "json_schema": {"schema": {"type": "no-such"}}}}},
            "generation.responseFormat",
        ),
        (
            {"generation": {"responseFormat": {"type": "json_schema", "json_schema": {"schema": {"enum": []}}}}},
            "generation.responseFormat",
        ),
    ],
)
@pytest.mark.parametrize("path", ["/inference", "/inference/stream"])
def test_what_is_wrong_is_named(http: httpx.Client, path: str, changes: dict[str, Any], field: str) -> None:
    answer = http.post(path, json={**body(), **changes})
    assert answer.status_code == 400, answer.text
    named = answer.json()["error"]["details"][0]["field"]
    assert named == field or named.startswith(f"{field}["), answer.text


def test_neither_prompt_nor_messages(http: httpx.Client) -> None:
    [detail] = http.post("/inference", json={"modelId": "tools"}).json()["error"]["details"]
    assert (detail["field"], detail["type"]) == ("prompt", "required")


_LONG = {
    "type": "json_schema",
    "json_schema": {
        "schema": {
            "type": "object",
            "properties": {
                "rows": {"type": "array", "minItems": 120, "maxItems": 120, "items": {"enum": [0, 1, 22, 333]}},
                "z": {"const": "end"},
            },
            "required": ["rows", "z"],
            "additionalProperties": False,
        }
    },
}
_STRUCK = body(responseFormat=_LONG, maxNewTokens=3500)
#: What must be the same over a seam: answers that take seconds, so that they are struck in their middle.
STRUCK = {
    "a form": _STRUCK,
    "a conversation": {**_STRUCK, "messages": NAME},
    "a stop string": body(responseFormat=_LONG, maxNewTokens=3500, stop='"z"'),
    "penalties": body(responseFormat=_LONG, maxNewTokens=3500, presencePenalty=0.7, frequencyPenalty=0.01),
}


@pytest.mark.parametrize("model", ["tools", "stepped"])
@pytest.mark.parametrize("kind", STRUCK)
def test_it_goes_on_when_its_worker_dies(stack: Stack, http: httpx.Client, kind: str, model: str) -> None:
    asked = {**STRUCK[kind], "modelId": model}
    expected = choice(http, asked)
    assert expected[1] == "stop"
    workers = [process for process in stack.processes if process.name.startswith("w") and process.name != "web"]
    until(lambda: stack.find(workers[-1].name), 120, "the worker is ready")
    with http.stream("POST", "/inference/stream", json=asked, timeout=120) as response:
        found = []
        for event in events(response):
            if not event.data:
                continue
            found.append(event)
            if len(found) == 3:
                os.kill(workers[-1].pid, signal.SIGKILL)
                stack.start_worker(f"w{len(workers) + 1}", ["--models", "tools,stepped"], seconds=180)
    assert text_of(found) == expected[0]
    chunks = [event.json() for event in found if event.data and event.data != "[DONE]"]
    reasons = [chunk["choices"][0].get("finish_reason") for chunk in chunks]
    assert [reason for reason in reasons if reason] == [expected[1]]
    [request] = {chunk["id"] for chunk in chunks}
    [(last, _)] = stack.client.xrevrange(f"cy:log:{request}", count=1)
    assert last.startswith(b"2-"), "it was struck after its end"

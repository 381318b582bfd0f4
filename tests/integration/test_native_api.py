"""The native API through real HTTP: shapes, defaults, limits, and every kind of bad input."""

import json
import re

import httpx
import pytest

from testing.fake_text import expected_text
from testing.sse import events, text_of
from testing.stack import GATEWAY_TOKEN, KEY, Stack
from testing.waiting import until


def test_inference_answers_with_the_documents_fields(fake_stack: Stack) -> None:
    with fake_stack.http() as http:
        body = {"modelId": "fake", "prompt": "one two three", "generation": {"maxNewTokens": 5}}
        response = http.post("/inference", json=body)
    assert response.status_code == 200
    answer = response.json()
    assert re.fullmatch(r"gen-[0-9a-f]{24}", answer.pop("id"))
    assert isinstance(answer.pop("created"), int)
    assert answer == {
        "modelId": "fake",
        "object": "text_completion",
        "choices": [{"index": 0, "text": expected_text("one two three", 5), "finish_reason": "length"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
    }


def test_256_tokens_are_the_default(fake_stack: Stack) -> None:
    with fake_stack.http() as http:
        answer = http.post("/inference", json={"modelId": "fake", "prompt": "x"}).json()
    assert answer["usage"]["completion_tokens"] == 256


def test_stream_sends_chunks_with_offsets_and_done(fake_stack: Stack) -> None:
    body = {"modelId": "slow", "prompt": "hello", "generation": {"maxNewTokens": 6}}
    with fake_stack.http() as http, http.stream("POST", "/inference/stream", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        found = list(events(response))
    assert found[-1].data == "[DONE]"
    chunks = [event.json() for event in found[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"text_completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["offset"] for choice in choices] == list(range(len(choices)))
    assert [choice.get("finish_reason") for choice in choices] == [None] * (len(choices) - 1) + ["length"]
    assert text_of(found) == expected_text("hello", 6)
    assert set(choices[0]) == {"index", "text", "offset"}
    assert "metadata" not in chunks[0]


def test_metadata_comes_back_with_the_stream_and_in_every_log_line(fake_stack: Stack) -> None:
    metadata = {"traceId": "trace-001", "tenant": "tenant-123", "playerId": "player-456", "locale": "zh-CN"}
    body = {"modelId": "fake", "prompt": "secret words", "metadata": metadata, "generation": {"maxNewTokens": 3}}
    with fake_stack.http() as http, http.stream("POST", "/inference/streamWithMetadata", json=body) as response:
        chunks = [event.json() for event in events(response) if event.data != "[DONE]"]
    assert all(chunk["metadata"] == metadata for chunk in chunks)
    request_id = chunks[0]["id"]
    for process in fake_stack.processes:
        lines = until(lambda p=process: p.lines_of(request_id), 5, f"{process.name} wrote a line for the request")
        assert all(line.items() >= metadata.items() for line in lines)
        assert "secret words" not in process.log.read_text()


def test_comment_lines_come_while_nothing_is_generated(fake_stack: Stack) -> None:
    body = {"modelId": "paused", "prompt": "x", "generation": {"maxNewTokens": 1}}
    with fake_stack.http() as http, http.stream("POST", "/inference/stream", json=body) as response:
        found = list(events(response))
    assert sum(1 for event in found if event.comment) >= 4
    assert found[-1].data == "[DONE]"


BAD = [
    ({"prompt": "x"}, "modelId", "required"),
    ({"modelId": "fake"}, "prompt", "required"),
    ({"modelId": "fake", "prompt": ""}, "prompt", "invalid_value"),
    ({"modelId": "fake", "prompt": 7}, "prompt", "invalid_type"),
    ({"modelId": "fake", "prompt": None}, "prompt", "required"),
    ({"modelId": 7, "prompt": "x"}, "modelId", "invalid_type"),
    ({"modelId": "fake", "prompt": "x", "surprise": 1}, "surprise", "unknown_field"),
    ({"modelId": "fake", "prompt": "x", "generation": 5}, "generation", "invalid_value"),
    ({"modelId": "fake", "prompt": "x", "generation": {"temperature": 3}}, "generation.temperature", "invalid_value"),
    ({"modelId": "fake", "prompt": "x", "generation": {"temperature": -0.1}}, "generation.temperature", "invalid_value"),
    ({"modelId": "fake", "prompt": "x", "generation": {"temperature": "1"}}, "generation.temperature", "invalid_type"),
    ({"modelId": "fake", "prompt": "x", "generation": {"temperature": True}}, "generation.temperature", "invalid_type"),
    ({"modelId": "fake", "prompt": "x", "generation": {"topP": 0}}, "generation.topP", "invalid_value"),
    ({"modelId": "fake", "prompt": "x", "generation": {"topP": 1.1}}, "generation.topP", "invalid_value"),
    ({"modelId": "fake", "prompt": "x", "generation": {"maxNewTokens": 0}}, "generation.maxNewTokens", "invalid_value"),
    ({"modelId": "fake", "prompt": "x", "generation": {"maxNewTokens": 1.5}}, "generation.maxNewTokens", "invalid_type"),
    ({"modelId": "fake", "prompt": "x", "generation": {"maxNewTokens": 8192}}, "generation.maxNewTokens", "out_of_range"),
    ({"modelId": "fake", "prompt": "x", "generation": {"repetitionPenalty": 0}}, "generation.repetitionPenalty", "invalid_value"),
    ({"modelId": "fake", "prompt": "x", "generation": {"top_k": 1}}, "generation.top_k", "unknown_field"),
    ({"modelId": "fake", "prompt": "x", "metadata": {"traceId": 1}}, "metadata.traceId", "invalid_type"),
    ({"modelId": "fake", "prompt": "x", "adapter": "../../etc/passwd"}, "adapter", "invalid_path"),
    ({"modelId": "tiny", "prompt": "word " * 64}, "prompt", "prompt_too_long"),
    ({"modelId": "tiny", "prompt": "word " * 60, "generation": {"maxNewTokens": 5}}, "generation.maxNewTokens", "out_of_range"),
]  # fmt: skip


@pytest.mark.parametrize("path", ["/inference", "/inference/stream"])
@pytest.mark.parametrize(("body", "field", "kind"), BAD)
def test_bad_input_names_the_field(fake_stack: Stack, body: dict, field: str, kind: str, path: str) -> None:
    with fake_stack.http() as http:
        response = http.post(path, json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "INVALID_REQUEST"
    assert [(detail["field"], detail["type"]) for detail in error["details"]] == [(field, kind)]
    assert error["details"][0]["description"]


def test_every_fault_gets_a_detail(fake_stack: Stack) -> None:
    body = {"modelId": "fake", "prompt": "", "generation": {"temperature": 3, "maxNewTokens": 0}, "extra": 1}
    with fake_stack.http() as http:
        details = http.post("/inference", json=body).json()["error"]["details"]
    fields = {detail["field"] for detail in details}
    assert fields == {"prompt", "generation.temperature", "generation.maxNewTokens", "extra"}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"modelId": "fake", "prompt": "\\ud800"}',
        b'{"modelId": "fake", "prompt": "x", "generation": {"temperature": NaN}}',
        b'{"modelId": "fake", "prompt": "x", "generation": {"temperature": 1e999}}',
    ],
)
def test_what_is_no_proper_json_is_refused(fake_stack: Stack, raw: bytes) -> None:
    with fake_stack.http() as http:
        response = http.post("/inference", content=raw)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "INVALID_REQUEST"


def test_unknown_model_is_404(fake_stack: Stack) -> None:
    with fake_stack.http() as http:
        response = http.post("/inference", json={"modelId": "model-not-found", "prompt": "x"})
        missing = http.get("/models/model-not-found")
    assert response.status_code == 404
    assert response.json() == {
        "error": {
            "code": "MODEL_NOT_FOUND",
            "message": "Invalid model ID: model-not-found",
            "details": [
                {
                    "type": "model_not_found",
                    "field": "modelId",
                    "description": "Model 'model-not-found' is not configured",
                }
            ],
        }
    }
    assert missing.status_code == 404


def test_model_without_a_worker_is_503_at_once(fake_stack: Stack) -> None:
    with fake_stack.http() as http:
        response = http.post("/inference", json={"modelId": "idle", "prompt": "x"})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "MODEL_NOT_READY"
    assert int(response.headers["Retry-After"]) > 0
    assert response.elapsed.total_seconds() < 2


def test_body_over_the_limit_is_413_in_the_same_envelope(fake_stack: Stack) -> None:
    body = json.dumps({"modelId": "fake", "prompt": "x" * 3_000_000})
    with fake_stack.http() as http:
        response = http.post("/inference", content=body)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "INVALID_REQUEST"


def test_unknown_paths_and_methods_use_the_envelope(fake_stack: Stack) -> None:
    with fake_stack.http() as http:
        missing, wrong = http.get("/nothing"), http.get("/inference")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "NOT_FOUND")
    assert wrong.status_code == 405
    assert wrong.json()["error"]["message"]


def test_no_key_and_a_wrong_key_look_the_same(fake_stack: Stack) -> None:
    url = f"{fake_stack.base}/api/v1/models"
    with httpx.Client(trust_env=False) as http:
        none, wrong = http.get(url), http.get(url, headers={"X-API-Key": "wrong"})
        bearer = http.get(url, headers={"Authorization": f"Bearer {KEY}"})
        gateway = http.get(url, headers={"X-API-Key": GATEWAY_TOKEN})
    assert (none.status_code, wrong.status_code) == (401, 401)
    assert none.content == wrong.content
    assert none.json()["error"]["code"] == "UNAUTHORIZED"
    assert bearer.status_code == 200
    assert (gateway.status_code, gateway.json()["error"]["code"]) == (403, "FORBIDDEN")


def test_models_tell_what_is_served(fake_stack: Stack) -> None:
    with fake_stack.http() as http:
        listed = {model["id"]: model for model in http.get("/models").json()["models"]}
        shown = http.get("/models/fake").json()
    # The interface document's fields, and for operators what goes beyond it.
    assert listed["fake"].pop("origin") == "file"
    assert [worker["state"] for worker in listed["fake"].pop("workers")] == ["ready"]
    assert listed["fake"] == {
        "id": "fake",
        "name": "Fake",
        "engine": "fake",
        "status": "ready",
        "capabilities": ["inference", "stream"],
        "maxModelLen": 8192,
    }
    assert listed["idle"]["status"] == "unavailable"
    assert set(shown) > {"id", "name", "engine", "modelPath", "status", "capabilities", "config"}
    assert shown["config"] == {"maxModelLen": 8192, "gpuMemoryUtilization": 0.92, "tensorParallelSize": 1}


def test_health_has_the_documents_shape(fake_stack: Stack) -> None:
    with fake_stack.http() as http:
        health, details = http.get("/health").json(), http.get("/health/details").json()
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    assert re.fullmatch(stamp, health.pop("timestamp"))
    assert health == {"status": "UP", "components": {"gateway": "UP", "coordinator": "UP", "redis": "UP"}}
    parts = details["components"]
    assert re.fullmatch(r"\d+h\d+m\d+s", parts["gateway"]["details"]["uptime"])
    assert parts["coordinator"]["details"]["workers"] == {"total": 1, "healthy": 1, "unhealthy": 0}
    assert parts["coordinator"]["details"]["queue"] == {"pendingTasks": 0, "maxSize": 1000}
    assert parts["redis"]["details"]["connected"] is True
    assert parts["redis"]["details"]["latencyMs"] > 0

"""No body, path, frame or message gets a 500, INTERNAL, a traceback, or ends a process."""

import json
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.json_format import ParseError
from hypothesis import given
from hypothesis import strategies as st

from testing.stack import KEY, Stack
from testing.websocket import receive, socket
from tests.fuzz.conftest import REAL, mutations, texts, values
from webapp.rpc import ai_service_pb2 as pb

_MODEL = "demo" if REAL else "fake"
_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
_GENERATION = {"maxNewTokens": 2, "temperature": 0.5, "topP": 0.9, "repetitionPenalty": 1.1}
_NATIVE = [
    {
        "modelId": _MODEL,
        "prompt": "x",
        "adapter": None,
        "generation": _GENERATION,
        "metadata": {"traceId": "t", "tenant": "a", "playerId": "p", "locale": "zh"},
        "priority": 3,
        "workerHint": "w1@test",
    }
]
_CHAT: list[Any] = [
    {
        "model": _MODEL,
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "a"}], "name": "bob"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "1", "content": "3"},
        ],
        "max_tokens": 2,
        "tools": [_TOOL],
        "tool_choice": "none",
    },
    {
        "model": "default",
        "messages": [{"role": "user", "content": "x"}],
        "max_completion_tokens": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "top_logprobs": 2,
        "stop": ["a"],
        "seed": 1,
        "n": 2,
        "logit_bias": {"5": 1},
        "frequency_penalty": 0.5,
        "presence_penalty": 0.5,
        "user": "u",
        "metadata": {"a": "b"},
    },
    {
        "model": _MODEL,
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 2,
        "structured_outputs": {"json": {"type": "object", "properties": {"a": {"type": "integer", "minimum": 1}}}},
        "min_tokens": 1,
        "top_k": 5,
        "min_p": 0.1,
        "bad_words": ["zz"],
        "stop_token_ids": [3],
        "allowed_token_ids": [3, 4, 5],
        "prompt_logprobs": 1,
        "truncate_prompt_tokens": 5,
        "ignore_eos": False,
        "skip_special_tokens": True,
        "echo": False,
        "chat_template_kwargs": {"a": 1},
        "priority": 2,
    },
    {
        "model": _MODEL,
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 2,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": {"type": "string"}, "strict": True},
        },
    },
]
_COMPLETION: list[Any] = [
    {"model": _MODEL, "prompt": "x", "max_tokens": 2, "suffix": None, "best_of": None, "echo": True, "logprobs": 1},
    {"model": _MODEL, "prompt": [1, 2], "max_tokens": 2, "stream": True, "n": 2},
    {"model": _MODEL, "prompt": ["a", "b"], "max_tokens": 2, "structured_outputs": {"regex": "[a-z]"}},
]
_TRAINING: list[Any] = [
    {
        "baseModel": _MODEL,
        "outputDir": "out",
        "datasetPath": "nope.jsonl",
        "hyperParams": {
            "batchSize": 1,
            "learningRate": 1e-4,
            "epochs": 1,
            "loraRank": 8,
            "evalSplit": 0.1,
            "packing": False,
        },
        "loraConfig": {"r": 8, "loraAlpha": 16, "targetModules": ["q_proj"], "bias": "none"},
        "quantization": {"use4bit": False},
        "adapterName": "a",
        "method": "sft",
        "datasetFormat": "text",
        "longRows": "drop",
        "resumeFrom": "x",
        "promoteBelow": 1.0,
        "maxRestarts": 1,
    }
]
_POSTS = {
    "/api/v1/inference": _NATIVE,
    "/api/v1/inference/stream": _NATIVE,
    "/api/v1/inference/streamWithMetadata": _NATIVE,
    "/api/v1/training/start": _TRAINING,
    "/api/v1/adapters/a/promote": [{"version": 1}],
    "/v1/chat/completions": _CHAT,
    "/v1/completions": _COMPLETION,
}


@pytest.fixture(scope="module")
def http(stack: Stack) -> Any:
    with httpx.Client(timeout=60, trust_env=False, headers={"Authorization": f"Bearer {KEY}"}) as client:
        yield client


def address(stack: Stack, path: str) -> str:
    return f"http://127.0.0.1:{stack.port if path.startswith('/api') else stack.openai_port}{path}"


def require_told(answer: httpx.Response) -> None:
    """A fault of the client's is one, and is said in the face's shape."""
    assert answer.status_code < 500 or "not_ready" in answer.text, answer.text
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert error["message"]
        assert "Traceback" not in answer.text
    elif answer.headers["content-type"].startswith("text/event-stream"):
        assert "internal_error" not in answer.text.lower(), answer.text
        assert "server_error" not in answer.text, answer.text


@pytest.mark.parametrize("path", _POSTS)
def test_bodies(stack: Stack, http: httpx.Client, path: str) -> None:
    @given(mutations(_POSTS[path]))
    def ask(body: Any) -> None:
        raw = json.dumps(body).encode()
        require_told(http.post(address(stack, path), content=raw, headers={"Content-Type": "application/json"}))

    ask()
    assert http.get(address(stack, "/api/v1/health")).status_code == 200


@pytest.mark.parametrize("path", _POSTS)
def test_bytes(stack: Stack, http: httpx.Client, path: str) -> None:
    @given(
        st.sampled_from(_POSTS[path]),
        st.integers(0, 400),
        st.binary(max_size=6),
        st.sampled_from(["", "gzip", "deflate", "br"]),
    )
    def ask(body: Any, at: int, junk: bytes, encoding: str) -> None:
        raw = json.dumps(body, ensure_ascii=False).encode()
        at = min(at, len(raw))
        broken = raw[:at] + junk + raw[at + len(junk) :]
        headers = {"Content-Encoding": encoding} if encoding else {}
        require_told(http.post(address(stack, path), content=broken, headers=headers))

    ask()


def test_paths_queries_and_headers(stack: Stack, http: httpx.Client) -> None:
    places = [
        "/api/v1/inference/{}",
        "/api/v1/inference/{}/stream",
        "/api/v1/training/status/{}",
        "/api/v1/training/{}/events",
    ]
    places += [
        "/api/v1/adapters/{}",
        "/api/v1/models/{}",
        "/v1/models/{}",
        "/{}",
        "/v1/{}",
        "/api/v1/training/list?limit={}",
    ]

    @given(
        st.sampled_from(places),
        st.binary(max_size=12),
        st.sampled_from(["GET", "POST", "DELETE", "PUT", "HEAD"]),
        st.text(max_size=20),
    )
    def ask(place: str, part: bytes, method: str, header: str) -> None:
        quoted = "".join(f"%{byte:02x}" for byte in part)
        clean = "".join(c for c in header if c.isprintable() and ord(c) < 256).strip().encode("latin-1")
        headers = {b"Last-Event-ID": clean, b"Idempotency-Key": clean}
        answer = http.request(method, address(stack, place.format(quoted)), headers=headers)
        assert answer.status_code < 500, answer.text

    ask()


def test_frames(stack: Stack) -> None:
    rights: list[Any] = [
        {"type": "start", "ref": "r", "request": _NATIVE[0], "idempotencyKey": "k"},
        {"type": "resume", "id": "gen-1", "lastEventId": "1-1"},
        {"type": "cancel", "id": "gen-1"},
        {"type": "watch", "jobId": "job-1", "lastEventId": "5"},
        {"type": "ping"},
        {"type": "auth", "apiKey": "x"},
    ]

    @given(mutations(rights) | values | st.binary(max_size=20))
    def ask(frame: Any) -> None:
        ws.send(frame if isinstance(frame, bytes) else json.dumps(frame))
        ws.send('{"type": "ping"}')
        while (found := receive(ws))["type"] != "pong":
            assert found.get("status", 200) < 500, found

    with socket(stack) as ws:
        receive(ws)
        ask()


def test_messages(stack: Stack) -> None:
    channel = grpc.insecure_channel(f"127.0.0.1:{stack.grpc_port}", options=[("grpc.enable_http_proxy", 0)])
    methods = {
        "AIService/StreamPredict": (pb.StreamPredictRequest, channel.unary_stream),
        "AiTraining/StartTraining": (pb.TrainingRequest, channel.unary_stream),
        "AiTraining/GetTrainingStatus": (pb.TrainingStatusRequest, channel.unary_unary),
        "AiTraining/CancelTraining": (pb.CancelTrainingRequest, channel.unary_unary),
        "AiTraining/ListTrainingJobs": (pb.ListTrainingJobsRequest, channel.unary_unary),
        "AiInference/Health": (pb.WorkerHealthRequest, channel.unary_unary),
    }

    @given(st.sampled_from(sorted(methods)), st.binary(max_size=40) | texts, st.data())
    def ask(name: str, raw: Any, data: st.DataObject) -> None:
        kind, call = methods[name]
        if isinstance(raw, str):
            message = kind()
            for field in kind.DESCRIPTOR.fields:
                if field.message_type is None and not field.is_repeated and data.draw(st.booleans()):
                    try:
                        setattr(
                            message,
                            field.name,
                            data.draw(st.sampled_from([0, 1, 2**31 - 1, -1, 1.5, "a\0b", "é", True])),
                        )
                    except (TypeError, ValueError, ParseError):
                        # Not a value of this field's type.
                        continue
            raw = message.SerializeToString()
        method = call(f"/cy.llm.{name}", request_serializer=bytes, response_deserializer=bytes)
        try:
            answer = method(raw, timeout=20, metadata=(("x-api-key", KEY),))
            if call is channel.unary_stream:
                list(answer)
        except grpc.RpcError as error:
            code = error.code()  # type: ignore[attr-defined]
            assert code not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN), (name, error)

    try:
        ask()
    finally:
        channel.close()

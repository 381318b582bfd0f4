"""A call's trace is on the lines of every process, whatever face it came through."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from testing.faces import Answer, Call, Grpc
from testing.stack import KEY, Stack
from testing.waiting import until
from testing.websocket import start, until_done
from tests.conftest import FAKE_MODELS

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("traces"), FAKE_MODELS)
    try:
        stack.start_worker("w1", ["--models", "fake,slow"])
        stack.start_web()
        stack.start_grpc()
        yield stack
    finally:
        stack.close()


def header(number: int) -> tuple[str, str]:
    trace = f"{number:032x}"
    return trace, f"00-{trace}-00f067aa0ba902b7-01"


def processes(stack: Stack, trace: str) -> set[str]:
    """The processes that have a line with the trace."""
    logs = Path(stack.folder).glob("*.log")
    return {path.name.partition("-")[0] for path in logs if f'"trace_id": "{trace}"' in path.read_text()}


def test_http(stack: Stack) -> None:
    body = {"modelId": "fake", "prompt": "p", "generation": {"maxNewTokens": 2}}
    chat = {"model": "fake", "messages": [{"role": "user", "content": "p"}], "max_tokens": 2}
    calls = [
        (f"{stack.base}/api/v1/inference", body),
        (f"{stack.base}/api/v1/inference/stream", body),
        (f"{stack.openai_base}/chat/completions", chat),
        (f"{stack.openai_base}/chat/completions", {**chat, "stream": True}),
    ]
    for number, (url, sent) in enumerate(calls, 1):
        trace, parent = header(number)
        headers = {"X-API-Key": KEY, "traceparent": parent}
        assert httpx.post(url, json=sent, headers=headers, trust_env=False, timeout=30).status_code == 200
        until(lambda trace=trace: processes(stack, trace) == {"web", "w1"}, 10, f"{url}: both processes name it")


def test_websocket_and_grpc(stack: Stack) -> None:
    from websockets.sync.client import connect

    trace, parent = header(11)
    url = f"ws://127.0.0.1:{stack.port}/api/v1/inference/ws"
    with connect(url, additional_headers={"X-API-Key": KEY, "traceparent": parent}, proxy=None) as ws:
        start(ws, "a", "p", tokens=2)
        until_done(ws)
    until(lambda: processes(stack, trace) == {"web", "w1"}, 10, "both processes name it")
    trace, parent = header(12)
    face = Traced(stack, parent)
    answer = Answer()
    face.follow(Call(KEY, tokens=2), answer)
    face.close()
    assert answer.finished
    until(lambda: processes(stack, trace) == {"grpc", "w1"}, 10, "both processes name it")


class Traced(Grpc):
    """A client that sends the header."""

    def __init__(self, stack: Stack, parent: str) -> None:
        super().__init__(stack)
        self._parent = parent

    def _start(self, call: Call) -> object:
        metadata = [("x-api-key", KEY), ("traceparent", self._parent)]
        return self._client.call("AiInference", "StreamPredict", iter([self._request(call)]), metadata=metadata)


def test_a_wrong_header_changes_nothing(stack: Stack) -> None:
    body = {"modelId": "fake", "prompt": "p", "generation": {"maxNewTokens": 2}}
    headers = {"X-API-Key": KEY, "traceparent": "00-nonsense"}
    url = f"{stack.base}/api/v1/inference"
    assert httpx.post(url, json=body, headers=headers, trust_env=False, timeout=30).status_code == 200

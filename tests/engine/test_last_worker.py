"""No worker is left: before a stream has begun that is a status, in its middle an event that clients raise."""

import json
import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import httpx
import pytest

from testing import tool_model
from testing.stack import Stack
from testing.tool_model import transcripts
from tests.conftest import require

pytestmark = [pytest.mark.full, pytest.mark.timeout(300)]

_TURNS = [{"role": "user", "content": transcripts.COUNT}]
BODIES: dict[str, dict[str, Any]] = {
    "/chat/completions": {"messages": _TURNS, "max_tokens": 700},
    "/messages": {"messages": _TURNS, "max_tokens": 700},
    "/responses": {"input": transcripts.COUNT, "max_output_tokens": 700},
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    require(find_spec("vllm") is not None, "vLLM is not installed (bin/test installs it)")
    models = {"default": "tools", "models": {"tools": tool_model.ENTRY}}
    # Whoever waits for another worker is told soon that none came.
    stack = Stack(tmp_path_factory.mktemp("last"), models, env={"CY_LLM_REQUEST_TIMEOUT_SECONDS": "8"})
    try:
        stack.start_web()
        yield stack
    finally:
        stack.close()


@pytest.mark.parametrize("path", BODIES)
def test_before_the_beginning_it_is_a_status(raw: httpx.Client, path: str) -> None:
    for streamed in (False, True):
        answer = raw.post(path, json={**BODIES[path], "model": "tools", "stream": streamed})
        assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0, answer.text
        kind = "overloaded_error" if path == "/messages" else "server_error"
        assert answer.json()["error"]["type"] == kind


@pytest.mark.parametrize("path", BODIES)
def test_in_the_middle_it_is_an_event(stack: Stack, raw: httpx.Client, path: str) -> None:
    worker = stack.start_worker("w1", ["--models", "tools"], seconds=180)
    documents: list[dict[str, Any]] = []
    lines: list[str] = []
    with raw.stream("POST", path, json={**BODIES[path], "model": "tools", "stream": True}) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            lines.append(line)
            if line.startswith("data: {"):
                documents.append(json.loads(line.removeprefix("data: ")))
                if len(documents) == 4:
                    os.killpg(worker.pid, signal.SIGKILL)
                    worker.wait(10)
    last = documents[-1]
    match path:
        case "/chat/completions":
            assert last["error"]["type"] == "server_error" and last["error"]["message"]
        case "/messages":
            assert last["type"] == "error" and last["error"]["type"] == "overloaded_error"
            assert "event: error" in lines
        case _:
            assert last["type"] == "response.failed" and last["response"]["status"] == "failed"
            assert last["sequence_number"] == len(documents) - 1
            kept = raw.get(f"/responses/{last['response']['id']}").json()
            assert (kept["status"], kept["error"]["code"]) == ("failed", "server_error")

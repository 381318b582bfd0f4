"""``performance`` of an answer, where a client asks for it."""

import time
from typing import Any

import httpx
import pytest

from services.inference.performance import Performance
from testing import websocket
from testing.sse import events
from testing.stack import KEY, Stack

MESSAGES = [{"role": "user", "content": "x"}]


def asked(tokens: int = 20, **more: Any) -> dict[str, Any]:
    return {"modelId": "slow", "prompt": "x", "generation": {"maxNewTokens": tokens}, **more}


def right(performance: dict[str, Any], trace_id: str, seconds: float) -> None:
    """The slow engine makes 20 tokens a second."""
    assert set(performance) == {"ttft_ms", "tps", "trace_id"} and performance["trace_id"] == trace_id
    assert 0 < performance["ttft_ms"] < seconds * 1000
    assert 5 < performance["tps"] < 40


def test_of_a_native_answer(fake_stack: Stack) -> None:
    with fake_stack.http() as http:
        begun = time.monotonic()
        whole = http.post("/inference", json=asked(includePerformance=True, metadata={"traceId": "t-1"})).json()
        right(whole["performance"], "t-1", time.monotonic() - begun)
        assert "performance" not in http.post("/inference", json=asked(2)).json()
        alone = http.post("/inference", json=asked(1, includePerformance=True)).json()
        # Of one token no speed can be told.
        assert alone["performance"]["tps"] is None and alone["performance"]["trace_id"] == alone["id"]
        assert http.post("/inference", json=asked(includePerformance=1)).status_code == 400


def test_of_a_native_stream_in_its_last_chunk(fake_stack: Stack) -> None:
    begun = time.monotonic()
    with (
        fake_stack.http() as http,
        http.stream("POST", "/inference/stream", json=asked(includePerformance=True)) as response,
    ):
        chunks = [event.json() for event in events(response) if event.data and event.data != "[DONE]"]
    right(chunks[-1]["performance"], chunks[-1]["id"], time.monotonic() - begun)
    assert not any("performance" in chunk for chunk in chunks[:-1])


def test_over_a_websocket(fake_stack: Stack) -> None:
    begun = time.monotonic()
    with websocket.socket(fake_stack) as ws:
        websocket.send(ws, "start", ref="r", request=asked(includePerformance=True))
        *_, last, _ = websocket.until_done(ws)
    right(last["performance"], last["id"], time.monotonic() - begun)


def test_streams_of_v1_are_measured_by_their_readers(fake_stack: Stack) -> None:
    with httpx.Client(
        base_url=fake_stack.openai_base, headers={"Authorization": f"Bearer {KEY}"}, trust_env=False
    ) as http:
        body = {"model": "slow", "messages": MESSAGES, "max_tokens": 2, "include_performance": True}
        refused = http.post("/chat/completions", json={**body, "stream": True})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "include_performance"
        # The fake engine measures nothing.
        answer = http.post("/chat/completions", json=body)
        performance = answer.json()["performance"]
        assert performance == {"ttft_ms": None, "tps": None, "trace_id": answer.headers["x-request-id"]}


def test_of_what_a_worker_measured() -> None:
    end = {"usage": {"completion_tokens": 11}, "timing": {"first_token_ms": 30.0, "generation_ms": 500.0}}
    performance = Performance(arrived=100.0, trace_id="t")
    measured = performance.report_of(end, opened=100.02, ended=100.6)
    assert measured == {"ttft_ms": pytest.approx(50.0), "tps": 20.0, "trace_id": "t"}
    # Its opening was seen 100 ms late.
    late = performance.report_of(end, opened=100.12, ended=100.56)
    assert late == {**measured, "ttft_ms": pytest.approx(60.0)}

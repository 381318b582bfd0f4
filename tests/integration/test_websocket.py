"""The WebSocket, with the ``websockets`` client."""

import json
import signal

import pytest
from websockets.exceptions import ConnectionClosed

from testing.background_stream import running
from testing.fake_text import expected_text
from testing.stack import GATEWAY_TOKEN, KEY, Stack
from testing.waiting import until
from testing.websocket import receive, send, socket, start, text_of, until_done


def test_many_requests_over_one_socket(fake_stack: Stack) -> None:
    with socket(fake_stack) as ws:
        assert receive(ws) == {"type": "ready"}
        for number in range(5):
            start(ws, f"r{number}", f"p{number}")
        frames = until_done(ws, 5)
        send(ws, "ping")
        assert receive(ws) == {"type": "pong"}
    ids = {frame["ref"]: frame["id"] for frame in frames if frame["type"] == "accepted"}
    for number in range(5):
        assert text_of(frames, ids[f"r{number}"]) == expected_text(f"p{number}", 10)
    chunk = next(frame for frame in frames if frame["type"] == "chunk")
    assert set(chunk) == {"type", "eventId", "id", "object", "choices"}


def test_metadata_is_on_the_chunks(fake_stack: Stack) -> None:
    with socket(fake_stack) as ws:
        receive(ws)
        start(ws, "r", "p", 2, metadata={"traceId": "t-1"})
        frames = until_done(ws)
    assert all(frame["metadata"] == {"traceId": "t-1"} for frame in frames if frame["type"] == "chunk")


def test_the_first_frame_may_carry_the_key(fake_stack: Stack) -> None:
    with socket(fake_stack, key=None) as ws:
        send(ws, "auth", apiKey=KEY)
        assert receive(ws) == {"type": "ready"}


@pytest.mark.parametrize(
    ("key", "frame", "code"),
    [
        (None, json.dumps({"type": "auth", "apiKey": "wrong"}), 4401),
        (None, json.dumps({"type": "start"}), 4401),
        (None, "nonsense", 4401),
        (None, '{"type": "auth", "apiKey": "\\ud800"}', 4401),
        (None, json.dumps({"type": "auth", "apiKey": GATEWAY_TOKEN}), 4403),
        (GATEWAY_TOKEN, None, 4403),
    ],
)
def test_close_codes_say_why(fake_stack: Stack, key: str | None, frame: str | None, code: int) -> None:
    with socket(fake_stack, key) as ws:
        if frame:
            ws.send(frame)
        with pytest.raises(ConnectionClosed) as closed:
            ws.recv(timeout=10)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == code
    assert closed.value.rcvd.reason


@pytest.mark.parametrize(
    ("frame", "field"),
    [
        ("nonsense", ""),
        ("[]", ""),
        ('{"type": "start", "ref": "\\ud800"}', "ref"),
        ("[" * 100_000, ""),
        (json.dumps({"type": "dance"}), "type"),
        (json.dumps({"type": "start", "ref": "r"}), "request.modelId"),
        (json.dumps({"type": "start", "request": {"modelId": "slow", "prompt": ""}}), "request.prompt"),
        (json.dumps({"type": "start", "request": {"modelId": "nope", "prompt": "x"}}), "modelId"),
        (json.dumps({"type": "cancel", "id": "gen-nope"}), "id"),
        (json.dumps({"type": "resume", "id": "gen-nope"}), "id"),
    ],
)
def test_a_bad_frame_is_told_and_the_socket_stays(fake_stack: Stack, frame: str, field: str) -> None:
    with socket(fake_stack) as ws:
        receive(ws)
        ws.send(frame)
        error = receive(ws)
        assert error["type"] == "error"
        assert field in [detail["field"] for detail in error["error"]["details"]]
        send(ws, "ping")
        assert receive(ws) == {"type": "pong"}


def test_cancel_and_resume(fake_stack: Stack) -> None:
    with socket(fake_stack) as ws:
        receive(ws)
        start(ws, "r", "p", 2000)
        accepted = receive(ws)
        frames = [receive(ws) for _ in range(5)]
        send(ws, "cancel", id=accepted["id"])
        frames += until_done(ws)
    assert frames[-2]["choices"][0]["finish_reason"] == "cancelled"
    last = frames[4]
    with socket(fake_stack) as ws:
        receive(ws)
        send(ws, "resume", id=accepted["id"], lastEventId=last["eventId"])
        rest = until_done(ws)
    whole = text_of(frames, accepted["id"])
    assert text_of(frames[:5], accepted["id"]) + text_of(rest, accepted["id"]) == whole
    assert expected_text("p", 2000).startswith(whole)


def test_a_client_that_leaves_frees_the_engine_and_may_resume(fake_stack: Stack) -> None:
    until(lambda: running(fake_stack) == 0, 10, "nothing runs")
    with socket(fake_stack) as ws:
        receive(ws)
        start(ws, "r", "p", 60)
        accepted = receive(ws)
        first = [receive(ws) for _ in range(5)]
        ws.socket.close()
    until(lambda: running(fake_stack) == 0, 4, "the engine is free")
    with socket(fake_stack) as ws:
        receive(ws)
        send(ws, "resume", id=accepted["id"], lastEventId=first[-1]["eventId"])
        rest = until_done(ws)
    assert text_of(first, accepted["id"]) + text_of(rest, accepted["id"]) == expected_text("p", 60)


@pytest.mark.full
def test_a_stopping_front_door_says_so(own_stack: Stack) -> None:
    own_stack.start_worker("w", ["--models", "slow"])
    web = own_stack.start_web()
    with socket(own_stack) as ws:
        receive(ws)
        start(ws, "r", "p", 200)
        frames = [receive(ws) for _ in range(4)]
        web.signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                frames.append(receive(ws))
    assert frames[-1]["type"] == "interrupted"
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012

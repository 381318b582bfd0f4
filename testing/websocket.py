"""The native WebSocket, through the ``websockets`` client."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from websockets.sync.client import ClientConnection, connect

from testing.stack import KEY, Stack


@contextmanager
def socket(stack: Stack, key: str | None = KEY) -> Iterator[ClientConnection]:
    headers = {"X-API-Key": key} if key else {}
    url = f"ws://127.0.0.1:{stack.port}/api/v1/inference/ws"
    with connect(url, additional_headers=headers, proxy=None) as ws:
        yield ws


def send(ws: ClientConnection, kind: str, **values: Any) -> None:
    ws.send(json.dumps({"type": kind, **values}))


def receive(ws: ClientConnection) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(ws.recv(timeout=20))
    return value


def start(ws: ClientConnection, ref: str, prompt: str, tokens: int = 10, **fields: Any) -> None:
    request = {"modelId": "slow", "prompt": prompt, "generation": {"maxNewTokens": tokens}, **fields}
    send(ws, "start", ref=ref, request=request)


def until_done(ws: ClientConnection, count: int = 1) -> list[dict[str, Any]]:
    frames = []
    while sum(frame["type"] == "done" for frame in frames) < count:
        frames.append(receive(ws))
        assert frames[-1]["type"] != "error", frames[-1]
    return frames


def text_of(frames: list[dict[str, Any]], request_id: str) -> str:
    mine = [frame for frame in frames if frame["type"] == "chunk" and frame["id"] == request_id]
    return "".join(frame["choices"][0]["text"] for frame in mine)

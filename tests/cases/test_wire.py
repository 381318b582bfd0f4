"""The wire: what real HTTP clients, proxies and browsers send."""

import gzip
import http.client
import json
import socket
import subprocess
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import openai
import pytest

from testing.stack import KEY, Stack
from tests.cases.product import MAX_GAP_SECONDS, BackgroundStream, Client

pytestmark = pytest.mark.full

_CHAT = {"model": "demo", "max_tokens": 3, "messages": [{"role": "user", "content": "x"}]}
_ORIGIN = {"Origin": "http://localhost:3000"}


def test_01_a_browser_asks_first(client: Client, product: Stack) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    for url in (f"{client.openai}/v1/chat/completions", f"{client.native}/api/v1/inference"):
        answer = httpx.options(url, headers={**_ORIGIN, **asked}, trust_env=False)
        assert answer.status_code == 204
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert "POST" in answer.headers["Access-Control-Allow-Methods"]
        assert "authorization" in answer.headers["Access-Control-Allow-Headers"].lower()
    whole = client.request("GET", f"{client.openai}/v1/models", headers=_ORIGIN)
    refused = httpx.get(f"{client.openai}/v1/models", headers=_ORIGIN, trust_env=False)
    assert (whole.status_code, refused.status_code) == (200, 401)
    streamed = client.post("/v1/chat/completions", {**_CHAT, "stream": True}, native=False, **_ORIGIN)
    for answer in (whole, refused, streamed):
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Origin" not in client.request("GET", f"{client.openai}/v1/models").headers


@contextmanager
def slow_uploaders(stack: Stack, count: int) -> Iterator[list[socket.socket]]:
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        'Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"model"'
    )
    sockets = []
    try:
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", stack.openai_port))
            sockets.append(connection)
            connection.sendall(head.encode())
        yield sockets
    finally:
        for connection in sockets:
            connection.close()


def test_19_slow_uploaders_hold_up_nobody(client: Client, product: Stack) -> None:
    def times() -> list[float]:
        found = []
        for _ in range(20):
            started = time.monotonic()
            assert client.chat(max_tokens=1).status_code == 200
            found.append(time.monotonic() - started)
        return sorted(found)

    before = times()[10]
    with slow_uploaders(product, 8):
        time.sleep(0.5)
        during = times()[10]
    # A turn that is held costs each request a quarter of a second.
    assert during < before + 0.2, (before, during)


def test_19_a_body_that_never_ends_is_given_up(product: Stack) -> None:
    with slow_uploaders(product, 1) as [connection]:
        connection.settimeout(45)
        # Head and body may come in one piece or in two.
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 408
        assert b"request_timeout" in answer.read()


@pytest.mark.parametrize(
    "values",
    [
        {"adapter": None},
        {"generation": None},
        {"metadata": None},
        {"generation": {"maxNewTokens": None, "topP": None}},
        {"priority": None},
        {"workerHint": None},
        {"adapter": ""},
        {"metadata": {"trace_id": None, "playerId": None}},
        {"generation": {"maxNewTokens": 4.0}},
    ],
)
def test_26_null_is_not_given(client: Client, values: dict[str, object]) -> None:
    generation = values.get("generation") or {}
    assert isinstance(generation, dict)
    body = {**values, "generation": {"maxNewTokens": 3, **generation} if generation else values.get("generation", {})}
    assert client.infer(**body).status_code == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/chat/completions/", 200),
        ("//v1/chat/completions", 200),
        ("/v1//chat/completions", 200),
        ("/v1/v1/chat/completions", 404),
        ("/chat/completions", 404),
    ],
)
def test_29_shapes_of_the_url(product: Stack, path: str, status: int) -> None:
    # Not through httpx, which puts paths right itself.
    with socket.create_connection(("127.0.0.1", product.openai_port)) as connection:
        body = json.dumps(_CHAT)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: llm.example\r\nX-Forwarded-Proto: https\r\nAuthorization: Bearer {KEY}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        connection.sendall((head + body).encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    top, _, rest = answer.partition(b"\r\n\r\n")
    assert f" {status} ".encode() in top.split(b"\r\n")[0]
    assert b"location:" not in top.lower()
    if status == 404:
        error = json.loads(rest)["error"]
        assert error["code"] == "not_found"
        assert "/v1/chat/completions" in error["message"]


def test_29_reading_paths(client: Client) -> None:
    assert client.request("GET", f"{client.openai}/v1/models/").status_code == 200
    assert client.request("GET", f"{client.openai}/models").json()["error"]["type"] == "invalid_request_error"
    assert "details" in client.request("GET", f"{client.native}/models").json()["error"]
    assert client.request("GET", f"{client.openai}/v1/models/org%2Fassistant").json()["root"] == "demo"
    assert client.request("GET", f"{client.openai}/v1/models/Qwen%2Fx").status_code == 404
    for method in ("GET", "HEAD"):
        assert httpx.request(method, f"{client.openai}/", trust_env=False).status_code == 200


def test_31_compressed_bodies(client: Client, product: Stack) -> None:
    raw = json.dumps(_CHAT).encode()
    for encoding, packed in (
        ("gzip", gzip.compress(raw)),
        ("deflate", zlib.compress(raw)),
        ("deflate", zlib.compress(raw)[2:-4]),
        ("gzip", gzip.compress(raw[:20]) + gzip.compress(raw[20:])),
        ("identity", raw),
    ):
        answer = client.post("/v1/chat/completions", packed, native=False, **{"Content-Encoding": encoding})
        assert answer.status_code == 200, (encoding, answer.text)
    bomb = gzip.compress(b" " * (64 * 2**20))
    too_large = client.post("/v1/chat/completions", bomb, native=False, **{"Content-Encoding": "gzip"})
    assert too_large.status_code == 413
    for encoding, status in (("zstd", 415), ("br", 415), ("gzip, gzip", 415), ("gzip", 400)):
        answer = client.post("/v1/chat/completions", b"abc", native=False, **{"Content-Encoding": encoding})
        assert answer.status_code == status


@pytest.mark.parametrize(
    "values",
    [
        {"top_logprobs": 3},
        {"n": 0},
        {"stream_options": {"include_usage": True}},
        {"logit_bias": {"999999": 5}},
        {"response_format": {"type": "json_schema"}},
        {"seed": "x"},
    ],
)
def test_32_an_errors_code_is_text_or_null(client: Client, values: dict[str, object]) -> None:
    answer = client.chat(**values)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] is None or isinstance(error["code"], str)
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}
    assert "--" not in error["message"], "an option of vLLM's command line"


def test_34_two_keys_and_azures_header(client: Client) -> None:
    url = f"{client.openai}/v1/models"
    right, wrong = f"Bearer {KEY}", "Bearer placeholder"
    for headers in (
        {"X-API-Key": "placeholder", "Authorization": right},
        {"X-API-Key": KEY, "Authorization": wrong},
        {"api-key": KEY},
        {"Authorization": f"bearer   {KEY}"},
    ):
        assert httpx.get(url, headers=headers, trust_env=False).status_code == 200, headers
    for headers in ({"X-API-Key": "a", "Authorization": wrong}, {"Authorization": f"Basic {KEY}"}, {}):
        assert httpx.get(url, headers=headers, trust_env=False).status_code == 401


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ({"max_tokens": 10.0}, 200),
        ({"max_tokens": "100"}, 400),
        ({"max_tokens": 10.5}, 400),
        ({"max_tokens": -1}, 400),
        ({"max_tokens": 0}, 400),
        ({"temperature": "0.5"}, 400),
        ({"top_p": 0}, 400),
        ({"stream": "true"}, 400),
    ],
)
def test_35_numbers(client: Client, values: dict[str, object], status: int) -> None:
    answer = client.chat(**values)
    assert answer.status_code == status
    if status == 400:
        assert answer.json()["error"]["param"] == next(iter(values))


def test_53_probes_need_no_key(client: Client) -> None:
    for base in (client.native, client.openai):
        for path in ("/health", "/ready", "/"):
            assert httpx.get(base + path, trust_env=False).status_code == 200
    assert httpx.get(f"{client.native}/api/v1/health", trust_env=False).status_code == 401


def test_55_late_refusals_and_comments(client: Client, product: Stack) -> None:
    with product.openai() as sdk:
        chunks = list(
            sdk.chat.completions.create(
                model="demo",
                stream=True,
                stream_options={"include_usage": True},
                max_tokens=100,
                extra_body={"ignore_eos": True},
                messages=[{"role": "user", "content": "x"}],
            )
        )
        assert chunks[-1].usage is not None and chunks[-1].choices == []
        started = time.monotonic()
        with pytest.raises(openai.APIError):
            list(
                sdk.chat.completions.create(
                    model="demo", stream=True, messages=[{"role": "user", "content": "x " * 9000}]
                )
            )
        assert time.monotonic() - started < 20


def test_56_java_s_upgrade_with_a_chunked_body(product: Stack) -> None:
    body = json.dumps(_CHAT)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", product.openai_port), timeout=30) as connection:
        connection.sendall(f"{head}{len(body):x}\r\n{body}\r\n0\r\n\r\n".encode())
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 200


@pytest.mark.parametrize("tail", [b"zz\r\n{}\r\n0\r\n\r\n", b"5\r\n{}", b"2\r\n{}\r\nXX"])
def test_a_chunked_body_that_is_framed_wrongly(product: Stack, tail: bytes) -> None:
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", product.openai_port), timeout=30) as connection:
        connection.sendall(head.encode() + tail)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(65536)
    assert not answer or answer.startswith(b"HTTP/1.1 400"), answer


def _curl(product: Stack, *arguments: str, data: bytes = b"", path: str = "/v1/chat/completions") -> str:
    command = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code} ", f"http://127.0.0.1:{product.openai_port}{path}"]
    done = subprocess.run(
        [*command, "--noproxy", "*", *arguments], input=data, capture_output=True, timeout=60, check=True
    )
    return done.stdout.decode()


@pytest.mark.parametrize(
    "arguments",
    [
        ["-H", f"authorization: bearer {KEY}", "-H", "Content-Type: application/json"],
        ["-H", f"Authorization: Bearer {KEY}", "-H", "Content-Type: text/plain"],
        ["-H", f"Authorization: Bearer {KEY}", "-H", "Content-Type: application/json; charset=UTF-8"],
        ["-H", f"Authorization: Bearer {KEY}", "-H", "Transfer-Encoding: chunked"],
        ["-H", f"Authorization: Bearer {KEY}", "-H", "Accept: text/event-stream"],
        ["-H", f"Authorization: Bearer {KEY}", "-H", "Accept-Encoding: gzip"],
        ["-H", f"Authorization: Bearer {KEY}", "-H", "Expect: 100-continue"],
        ["-H", f"Authorization: Bearer {KEY}", "--http2"],
    ],
)
def test_61_ways_to_send_a_body(product: Stack, arguments: list[str]) -> None:
    for body in (json.dumps(_CHAT).encode(), b"\xef\xbb\xbf" + json.dumps(_CHAT).encode()):
        assert _curl(product, *arguments, "--data-binary", "@-", data=body) == "200 "


@pytest.mark.parametrize("chunked", [False, True])
def test_61_after_a_413_the_connection_can_be_used(product: Stack, chunked: bool) -> None:
    large = b'{"model":"demo","messages":[{"role":"user","content":"' + b"x" * (3 * 2**20) + b'"}]}'
    small = json.dumps(_CHAT).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"

    def framed(body: bytes) -> bytes:
        if chunked:
            return head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        return head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body

    with socket.create_connection(("127.0.0.1", product.openai_port), timeout=60) as connection:
        reader = connection.makefile("rb")
        for body, status in ((large, b"413"), (small, b"200")):
            connection.sendall(framed(body))
            top = reader.readline()
            assert status in top, top
            length = 0
            while (line := reader.readline()) not in (b"\r\n", b""):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            reader.read(length)


def test_63_no_proxy_buffers_a_stream(client: Client) -> None:
    for base, path, body in (
        (client.openai, "/v1/chat/completions", {**_CHAT, "stream": True}),
        (
            client.native,
            "/api/v1/inference/stream",
            {"modelId": "demo", "prompt": "x", "generation": {"maxNewTokens": 3}},
        ),
    ):
        with client._http.stream("POST", base + path, json=body) as answer:
            assert answer.headers["Cache-Control"] == "no-cache"
            assert answer.headers["X-Accel-Buffering"] == "no"
            assert "Content-Length" not in answer.headers


def test_a_stream_goes_on_beside_slow_uploaders(client: Client, product: Stack) -> None:
    with BackgroundStream(product) as stream, slow_uploaders(product, 8):
        time.sleep(2)
    assert stream.longest < MAX_GAP_SECONDS

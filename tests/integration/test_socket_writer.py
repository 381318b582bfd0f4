"""The way past the serving thread: every byte once and in order, however slowly the client reads."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import cast

import pytest
import redis
from flask import Flask

from launcher.redis_server import RedisServer
from services.inference.request_stream import RequestStream
from store.token_log import outcomes
from store.token_log.entries import Entry, Kind
from store.token_log.follower import Follower
from store.token_log.hub import Hub
from store.token_log.publisher import Publisher
from testing.publishing import publish
from testing.waiting import until
from webapp.gunicorn import socket_writer

LINES = 3000
LINE = b"%06d" + b"x" * 94 + b"\n"


@contextmanager
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A TCP connection: the server's side and the client's, which holds little that was not read."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server, closing(socket.socket()) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(30)
        client.connect(server.getsockname())
        server_side, _ = server.accept()
        with closing(server_side):
            yield server_side, client


def unchunk(data: bytes) -> bytes:
    parts = []
    while data:
        size, _, data = data.partition(b"\r\n")
        parts.append(data[: int(size, 16)])
        assert data[int(size, 16) :][:2] == b"\r\n"
        data = data[int(size, 16) + 2 :]
    return b"".join(parts)


class Served:
    """A thread that answers one request, as one of gunicorn's does."""

    def __init__(self, follower: Follower, server_side: socket.socket) -> None:
        #: Pieces that the thread itself wrote through gunicorn.
        self.yielded = 0
        self.error: OSError | None = None
        self._follower, self._socket = follower, server_side
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        environ = {"gunicorn.socket": self._socket, "SERVER_PROTOCOL": "HTTP/1.1"}
        with Flask(__name__).test_request_context(environ_overrides=environ):
            pieces = socket_writer.stream_response(
                cast(RequestStream, self._follower),
                self._follower.entries(idle=1),
                lambda entry: entry.data if entry is not None and entry.kind == Kind.BODY else b"",
                lambda entry: entry.kind == Kind.BODY,
            )
            try:
                for piece in pieces:
                    self.yielded += 1
                    self._socket.sendall(b"%X\r\n%b\r\n" % (len(piece), piece))
            except OSError as error:
                self.error = error
        self._socket.shutdown(socket.SHUT_WR)


async def write_lines(publisher: Publisher) -> None:
    writer = publisher.writer("r")
    await writer.open({})
    for number in range(LINES):
        writer.body(LINE % number)
        await asyncio.sleep(0)
        if number % 10 == 0:
            # So that not all of it leaves in a few entries.
            await asyncio.sleep(0.001)
    await writer.end(outcomes.finished(None, None))


@pytest.fixture
def hub(redis_server: RedisServer, redis_client: redis.Redis) -> Iterator[Hub]:
    server_side = Hub(redis_server.url, redis_client)
    yield server_side
    server_side.close()


def test_a_client_that_reads_late_gets_every_byte_once(
    redis_server: RedisServer, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_writer, "SEND_BUFFER", 4096)
    with sockets() as (server_side, client), hub.follow("r") as follower:
        served = Served(follower, server_side)
        publish(redis_server.url, write_lines)
        # The socket is full: the thread waits in it, and what has come since waits in the log.
        until(lambda: follower.overflowed, 10, "more has come than the follower holds")
        received = bytearray()
        while data := client.recv(65536):
            received += data
        served.thread.join(10)
    assert unchunk(bytes(received)) == b"".join(LINE % number for number in range(LINES))


def test_a_client_that_reads_is_served_past_the_thread(redis_server: RedisServer, hub: Hub) -> None:
    with sockets() as (server_side, client), hub.follow("r") as follower:
        received = bytearray()

        def read() -> None:
            while data := client.recv(65536):
                received.extend(data)

        reader = threading.Thread(target=read)
        reader.start()
        served = Served(follower, server_side)
        publish(redis_server.url, write_lines)
        served.thread.join(10)
        reader.join(10)
    assert unchunk(bytes(received)) == b"".join(LINE % number for number in range(LINES))
    assert served.yielded == 1


def test_a_client_that_reads_nothing_is_given_up(
    redis_server: RedisServer, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_writer, "SEND_BUFFER", 4096)
    monkeypatch.setattr(socket_writer, "STALL_SECONDS", 1)
    with sockets() as (server_side, _), hub.follow("r") as follower:
        served = Served(follower, server_side)
        publish(redis_server.url, write_lines)
        served.thread.join(20)
        assert isinstance(served.error, ConnectionResetError)


def test_no_entry_is_offered_while_the_thread_is_awake(hub: Hub) -> None:
    offered: list[Entry] = []
    with hub.follow("r") as follower:
        follower.set_direct_handler(lambda entry: offered.append(entry) is None)
        previous, entry = Entry.parse_frame(b"0-0 1-1 b x")
        follower.on_entry(previous, entry)
        assert not offered
        assert next(follower.entries(idle=5)) == entry

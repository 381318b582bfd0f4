"""The class of gunicorn's workers by itself, with an application of its own."""

import contextlib
import http.client
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from settings import ROOT
from testing.stack import free_port
from testing.waiting import until

_APP = """
import threading, time
waiting = threading.Semaphore(0)
def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/block" and not waiting.acquire(timeout=10):
        path = "/given up"
    if path == "/free":
        waiting.release()
    if path == "/closed":
        environ["gunicorn.socket"].close()
        raise StopIteration
    if path == "/last":
        open("begun", "w").close()
        while not stopping(environ):
            time.sleep(0.01)
    body = path.encode() + environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
_CONFIG = """
from webapp.gunicorn.worker import PollingThreadWorker
worker_class = PollingThreadWorker
workers, threads, worker_connections, keepalive, graceful_timeout = 1, 4, 8, 1, 10
control_socket_disable = True
def post_worker_init(worker):
    import served
    served.stopping = lambda environ: not worker.alive
"""


class Server:
    """gunicorn with the worker class: 4 threads, 8 connections, connections without a request are kept for a second."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        (folder / "served.py").write_text(_APP)
        (folder / "conf.py").write_text(_CONFIG)
        self.folder, self.log = folder, folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "-c", "conf.py", "-b", f"127.0.0.1:{self.port}", "served:app"],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
            )
        until(self._answers, 30, "gunicorn answers")

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.get("/") == b"/"
        return False

    def get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", path)
            return connection.getresponse().read()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("gunicorn"))
    yield started
    started.stop()
    assert started.process.returncode == 0
    assert "Traceback" not in started.log.read_text()


def request(path: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def read_answers(client: socket.socket, *ends: bytes) -> bytes:
    """Read until all the ends have come; without one, until the server closes."""
    data = b""
    while not ends or not all(end in data for end in ends):
        portion = client.recv(65536)
        if not portion:
            break
        data += portion
    return data


def test_one_connection_carries_many_requests(server: Server) -> None:
    with server.connect() as client:
        for number in range(20):
            client.sendall(request("/x", body=f"<{number}>".encode()))
            assert read_answers(client, b"/x<%d>" % number).endswith(b"/x<%d>" % number)


def test_requests_that_came_together_are_all_answered(server: Server) -> None:
    with server.connect() as client:
        client.sendall(request("/x", body=b"<1>") + request("/x", body=b"<2>") + request("/x", body=b"<3>"))
        data = read_answers(client, b"<3>")
        assert [data.count(b"/x<%d>" % number) for number in (1, 2, 3)] == [1, 1, 1]
        assert data.index(b"<1>") < data.index(b"<2>") < data.index(b"<3>")


def test_a_request_that_comes_slowly(server: Server) -> None:
    sent = request("/slow", body=b"<whole>")
    with server.connect() as client:
        for part in (sent[:1], sent[1:10], sent[10:-3], sent[-3:]):
            time.sleep(0.05)
            client.sendall(part)
        assert b"/slow<whole>" in read_answers(client, b"<whole>")


def test_who_says_nothing_holds_no_thread(server: Server) -> None:
    silent = [server.connect() for _ in range(6)]
    assert server.get("/y") == b"/y"
    with contextlib.ExitStack() as stack:
        for client in silent:
            stack.enter_context(client)
        silent[0].sendall(request("/z"))
        assert b"/z" in read_answers(silent[0], b"/z")


def test_a_connection_without_a_request_is_closed_in_time(server: Server) -> None:
    with server.connect() as client:
        client.sendall(request("/x"))
        read_answers(client, b"/x")
        assert client.recv(1) == b""


def test_more_connections_than_may_be_wait_for_a_place(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(server.connect()) for _ in range(4)]
        for client in kept:
            client.sendall(request("/x"))
            # It was answered, so it is there. gthread keeps as many as leave a place for every thread.
            assert b"keep-alive" in read_answers(client, b"/x")
        stack.enter_context(server.connect())  # says nothing
        blocked = [stack.enter_context(server.connect()) for _ in range(3)]
        for client in blocked:
            client.sendall(request("/block"))
        late = [stack.enter_context(server.connect()) for _ in range(3)]
        for client in late:
            client.sendall(request("/free", "Connection: close"))
        for client in late:
            assert b"/free" in read_answers(client, b"/free")
            assert any(select.select([other], [], [], 0)[0] for other in kept), "no place had come free"
            client.close()
        for client in blocked:
            assert b"/block" in read_answers(client, b"/block")


def test_as_many_requests_as_threads_run_at_once(server: Server) -> None:
    answers: list[bytes] = []
    threads = [threading.Thread(target=lambda: answers.append(server.get("/block"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert server.get("/free") == b"/free"
    for thread in threads:
        thread.join(30)
    assert answers == [b"/block"] * 3


def test_a_stopping_process_ends_what_it_began(tmp_path: Path) -> None:
    server = Server(tmp_path)
    for _ in range(4):
        # A connection that the application closes itself, as a WebSocket's library does, ends once and no more.
        with server.connect() as client:
            client.sendall(request("/closed"))
            assert read_answers(client) == b""
    with server.connect() as idle, server.connect() as running:
        idle.sendall(request("/x"))
        read_answers(idle, b"/x")
        running.sendall(request("/last"))
        until((server.folder / "begun").exists, 10, "the request has begun")
        server.process.send_signal(signal.SIGTERM)
        assert b"/last" in read_answers(running, b"/last")
        # A request that was on its way is answered.
        idle.sendall(request("/late"))
        late = read_answers(idle, b"/late")
        assert b"/late" in late and b"Connection: close" in late
        assert server.process.wait(20) == 0
    assert "Traceback" not in server.log.read_text()

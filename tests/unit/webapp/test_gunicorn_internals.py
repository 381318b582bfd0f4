"""What is relied on of gunicorn 27 without its documentation saying so. A failure here names the part."""

import inspect
import io
import socket

import gunicorn
import gunicorn.glogging
from gunicorn.config import Config
from gunicorn.http import wsgi
from gunicorn.workers.base import Worker
from gunicorn.workers.gthread import TConn, ThreadWorker

from webapp.gunicorn.internals import Connection, QuietLogger, client_socket, frame_chunk, is_stopping

VERSION = f"gunicorn {gunicorn.__version__}"


def test_the_environment_carries_the_socket() -> None:
    assert '"gunicorn.socket": sock' in inspect.getsource(wsgi).replace("'", '"'), VERSION
    pair = socket.socketpair()
    with pair[0], pair[1]:
        assert client_socket({"gunicorn.socket": pair[0]}) is pair[0]
        assert client_socket({"gunicorn.socket": io.BytesIO()}) is None
        assert client_socket({}) is None


def test_a_chunk_is_framed_as_gunicorn_frames_it() -> None:
    written = []

    class Recorder:
        def sendall(self, data: bytes) -> None:
            written.append(data)

    from gunicorn.util import write_chunk

    for data in (b"x", b"y" * 300):
        write_chunk(Recorder(), data)
    assert b"".join(written) == frame_chunk(b"x") + frame_chunk(b"y" * 300), VERSION


def test_a_worker_has_a_flag_that_says_it_is_alive() -> None:
    assert "self.alive = True" in inspect.getsource(Worker), VERSION
    worker = type("W", (), {"alive": True})()
    stopping = is_stopping(worker)
    assert not stopping()
    worker.alive = False
    assert stopping()


def test_the_logger_s_access_line_can_be_left_out() -> None:
    parameters = list(inspect.signature(gunicorn.glogging.Logger.access).parameters)
    assert list(inspect.signature(QuietLogger.access).parameters) == parameters, VERSION


def test_a_thread_s_handler_takes_a_connection_whose_data_are_there() -> None:
    handler = inspect.getsource(ThreadWorker.handle)
    assert "if not conn.initialized and not conn.data_ready:" in handler, VERSION
    # What it asks of the worker.
    assert "len(self.keepalived_conns) >= self.max_keepalived" in inspect.getsource(ThreadWorker.handle_request), (
        VERSION
    )
    assert list(inspect.signature(TConn.close).parameters) == ["self", "graceful"], VERSION
    assert list(inspect.signature(ThreadWorker.handle).parameters) == ["self", "conn"], VERSION


def test_a_signal_wakes_whoever_reads_the_worker_s_pipe() -> None:
    assert "signal.set_wakeup_fd(self.PIPE[1])" in inspect.getsource(Worker.init_signals), VERSION


def test_a_connection_tells_what_there_is_to_read() -> None:
    client, served = socket.socketpair()
    with client, served:
        connection = Connection(Config(), served, ("127.0.0.1", 1), ("127.0.0.1", 2))
        assert not connection.holds_data()
        assert connection.peek() is False
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /next")
        assert connection.peek() is True
        connection.init()
        assert next(connection.parser).path == "/", VERSION
        connection.parser.finish_body(None)
        assert connection.holds_data(), VERSION
        client.close()
        assert connection.peek() is None

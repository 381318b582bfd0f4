"""gunicorn's threads without a main thread between them and the sockets.

gthread's main thread takes each connection, hands it to a pool, hears through a pipe when the answer
is out, and drains whoever is slow to close, while all others wait. Here the threads wait at one epoll
themselves: the kernel wakes one of them for one connection (EPOLLONESHOT), the one that slept last;
it reads, answers, gives the connection back, and waits again. The main thread sweeps once a second.
"""

import contextlib
import os
import select
import socket
import threading
import time
from typing import Any

from webapp.gunicorn.internals import Connection, ThreadWorker, Worker

#: How long a new connection's thread waits for its first bytes before it gives the connection back. Seconds.
_FIRST_BYTES_SECONDS = 0.005
#: How long a connection may be without its first bytes. Seconds.
_FIRST_REQUEST_SECONDS = 10.0
#: How long a stopping process keeps connections open on which a request may be on its way. Seconds.
_LINGER_SECONDS = 2.0
#: Pause after a connection could not be taken, most likely for want of file descriptors. Seconds.
_ACCEPT_PAUSE_SECONDS = 0.1
_ONCE = select.EPOLLIN | select.EPOLLONESHOT


class PollingThreadWorker(ThreadWorker):
    """A gunicorn worker whose ``threads`` threads poll for their connections; how a request is handled is gthread's."""

    #: Until the process is told to stop, or has lost its parent.
    alive: bool

    def init_process(self) -> None:
        """Prepare the process, and run it to its end."""
        self._epoll = select.epoll()
        #: Guards what follows.
        self._lock = threading.Lock()
        self._threads = self._polling = 0
        self._listeners: dict[int, tuple[socket.socket, Any]] = {}
        #: Listeners that are not asked while there are as many connections as may be.
        self._paused: set[int] = set()
        #: Connections without a request, by descriptor. gthread's handler asks how many they are.
        self.keepalived_conns: dict[int, Connection] = {}
        Worker.init_process(self)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Begin to stop; the signal has woken the main thread through its pipe."""
        Worker.handle_exit(self, sig, frame)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """Stop at once."""
        Worker.handle_quit(self, sig, frame)

    def run(self) -> None:
        """Start the threads and look after them until the process is told to stop."""
        for listener in self.sockets:
            listener.setblocking(False)
            self._listeners[listener.fileno()] = (listener, listener.getsockname())
            self._epoll.register(listener.fileno(), _ONCE)
        self._start_thread()
        while self.alive and self.is_parent_alive():
            self.notify()
            self._sleep(1.0)
            self._close_idle(time.monotonic())
        self.alive = False
        self._drain()

    def _drain(self) -> None:
        with self._lock:
            for fd in self._listeners:
                self._epoll.unregister(fd)
            self._listeners.clear()
            for connection in self.keepalived_conns.values():
                connection.timeout = min(connection.timeout, time.monotonic() + _LINGER_SECONDS)
        ends = time.monotonic() + self.cfg.graceful_timeout
        while self.nr_conns > 0 and time.monotonic() < ends:
            self.notify()
            self._sleep(0.2)
            self._close_idle(time.monotonic())
        self._close_idle(float("inf"))
        for listener in self.sockets:
            listener.close()

    def _sleep(self, seconds: float) -> None:
        """Wait for a signal, or, while the process stops, for a connection's end."""
        if select.select([self.PIPE[0]], [], [], seconds)[0]:
            with contextlib.suppress(BlockingIOError):
                os.read(self.PIPE[0], 4096)

    def _close_idle(self, now: float) -> None:
        with self._lock:
            expired = [fd for fd, connection in self.keepalived_conns.items() if connection.timeout <= now]
            connections = [self.keepalived_conns.pop(fd) for fd in expired]
        for connection in connections:
            self._close(connection)

    # What follows runs in the threads.

    def _start_thread(self) -> None:
        with self._lock:
            self._threads += 1
        threading.Thread(target=self._poll, name="gunicorn-request", daemon=True).start()

    def _poll(self) -> None:
        while True:
            with self._lock:
                self._polling += 1
            events = self._epoll.poll(maxevents=1)
            with self._lock:
                self._polling -= 1
                # One thread more than have something to do, as long as there may be one.
                more = self._polling == 0 and self._threads < self.cfg.threads
            if more:
                self._start_thread()
            for fd, _ in events:
                try:
                    self._serve(fd)
                except Exception:
                    self.log.exception("A connection could not be served")

    def _serve(self, fd: int) -> None:
        if fd in self._listeners:
            connection = self._accept(fd)
        else:
            with self._lock:
                connection = self.keepalived_conns.pop(fd, None)
        if connection is None:
            return
        try:
            closing = self._answer(connection)
        except BaseException:
            self._close(connection)
            raise
        if closing is not None:
            self._close(connection, graceful=closing)

    def _accept(self, fd: int) -> Connection | None:
        try:
            listener, address = self._listeners[fd]
            client, client_address = listener.accept()
        except (KeyError, BlockingIOError, ConnectionAbortedError):
            # Stopped meanwhile; or another process was faster, or the client left.
            self._listen(fd)
            return None
        except OSError:
            self.log.exception("A connection cannot be taken")
            time.sleep(_ACCEPT_PAUSE_SECONDS)
            self._listen(fd)
            return None
        with self._lock:
            self.nr_conns += 1
        self._listen(fd)
        return Connection(self.cfg, client, client_address, address)

    def _listen(self, fd: int) -> None:
        """Let the next connection of a listener wake a thread, or leave it for :meth:`_close`."""
        with self._lock:
            if fd not in self._listeners:
                return
            if self.nr_conns < self.worker_connections:
                self._epoll.modify(fd, _ONCE)
            else:
                self._paused.add(fd)

    def _answer(self, connection: Connection) -> bool | None:
        """Answer what there is to answer; None: it waits for its next request, else whether to close it gracefully."""
        while True:
            if not connection.holds_data():
                arrived = connection.peek()
                if arrived is False and not connection.initialized and connection.wait_for_data(_FIRST_BYTES_SECONDS):
                    arrived = connection.peek()
                if arrived is None:
                    return False
                if not arrived:
                    break
            # The handler need not wait for it.
            connection.data_ready = True
            if not self.handle(connection):
                return True
            connection.set_timeout()
            if not connection.holds_data():
                break
        self._wait_for_request(connection)
        return None

    def _wait_for_request(self, connection: Connection) -> None:
        now = time.monotonic()
        with self._lock:
            if connection.timeout is None:
                connection.timeout = now + _FIRST_REQUEST_SECONDS
            if not self.alive:
                connection.timeout = min(connection.timeout, now + _LINGER_SECONDS)
            fd = connection.sock.fileno()
            # Who is woken at once finds it all the same: the lock is held until it is among them.
            if connection.polled:
                self._epoll.modify(fd, _ONCE)
            else:
                self._epoll.register(fd, _ONCE)
                connection.polled = True
            self.keepalived_conns[fd] = connection

    def _close(self, connection: Connection, graceful: bool = False) -> None:
        """Close a connection, once: it is counted until then."""
        try:
            connection.close(graceful)
        except OSError as error:
            # Its application did, as a WebSocket's library does.
            self.log.debug("A connection was closed already: %s", error)
        finally:
            with self._lock:
                self.nr_conns -= 1
                paused, self._paused = self._paused, set()
        for fd in paused:
            self._listen(fd)
        if not self.alive:
            with contextlib.suppress(BlockingIOError):
                os.write(self.PIPE[1], b"\0")

"""The shortest way from the hub to a client's socket: past the thread that serves it.

A stream holds one of gunicorn's threads, which sleeps until there is something to send. To
wake it for every token costs more than all else the front door does with a token. So while
it sleeps the hub's thread writes for it, framed as gunicorn would frame it; it never waits:
what the socket does not take at once is left to the thread.
"""

import errno
import logging
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from flask import request

from store.token_log.entries import Entry
from webapp.gunicorn.internals import client_socket, frame_chunk

log = logging.getLogger(__name__)

#: How long a client may take none of what is sent to it, before its connection is given up. Seconds.
#: It can come back and resume.
STALL_SECONDS = 60
#: What the kernel keeps for a client that reads slowly; left to itself it keeps megabytes. Bytes.
SEND_BUFFER = 128 * 1024


class EntrySource(Protocol):
    """Where the entries come from: a ``RequestStream``, or in tests a follower."""

    def set_direct_handler(self, handle: Callable[[Entry], bool]) -> None: ...


def bound_sending(connection: socket.socket) -> None:
    """Give up a client that takes nothing for ``STALL_SECONDS``: gunicorn sends without a bound."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", STALL_SECONDS, 0))


class SocketWriter:
    """One client's socket, as gunicorn answers on it (HTTP/1.1, chunked)."""

    def __init__(self, connection: socket.socket | None) -> None:
        #: None where there is no socket to write to: other servers, TLS, HTTP/1.0.
        self._socket = connection
        self._rest = b""

    @classmethod
    def of_request(cls) -> "SocketWriter":
        """The writer of the current call. To be made where the answer begins to be streamed."""
        connection = client_socket(request.environ)
        if connection is None:
            return cls(None)
        bound_sending(connection)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        chunked = request.environ.get("SERVER_PROTOCOL") == "HTTP/1.1" and request.method != "HEAD"
        return cls(connection if chunked else None)

    @property
    def usable(self) -> bool:
        return self._socket is not None

    def try_send(self, data: bytes) -> bool:
        """Send without waiting. False: the thread must call :meth:`flush`, and if that sends nothing, send ``data``."""
        if self._socket is None or self._rest:
            return False
        framed = frame_chunk(data)
        try:
            sent = self._socket.send(framed, socket.MSG_DONTWAIT)
        except OSError:
            # Full, or closed: the thread finds out which.
            return False
        self._rest = framed[sent:]
        return not self._rest

    def flush(self) -> bool:
        """Send what is left of the last :meth:`try_send`, waiting; whether there was any. Raises ``OSError``."""
        if not self._rest or self._socket is None:
            return False
        rest, self._rest = self._rest, b""
        self._send_all(rest)
        return True

    def send(self, data: bytes) -> None:
        """Send, waiting. Raises ``OSError``: the client left, or took nothing for ``STALL_SECONDS``."""
        self._send_all(frame_chunk(data))

    def _send_all(self, framed: bytes) -> None:
        assert self._socket is not None
        try:
            self._socket.sendall(framed)
        except BlockingIOError:
            log.warning("A client took nothing for %d seconds, its connection is given up", STALL_SECONDS)
            raise ConnectionResetError(errno.ECONNRESET, "the client does not read") from None


def stream_response(
    source: EntrySource,
    entries: Iterable[Entry | None],
    render: Callable[[Entry | None], bytes],
    sent_directly: Callable[[Entry], bool],
) -> Iterator[bytes]:
    """Yield what ``render`` makes of each entry, if anything.

    Entries that are ``sent_directly`` may go past this thread, once the answer has begun.
    """
    writer = SocketWriter.of_request()

    def handle(entry: Entry) -> bool:
        return sent_directly(entry) and writer.try_send(render(entry))

    begun = False
    for entry in entries:
        if writer.flush():
            # The rest was this entry's.
            continue
        data = render(entry)
        if data and begun:
            writer.send(data)
        elif data:
            yield data
            # Asked for more, so the head and this much are sent.
            begun = writer.usable
            source.set_direct_handler(handle)

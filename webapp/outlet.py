"""The shortest way from the hub to a client's socket: past the thread that serves it.

A stream holds one of gunicorn's threads, which sleeps until there is something to send. To
wake it for every token costs more than all else the front door does with a token. So while
it sleeps the hub's thread writes for it, framed as gunicorn would frame it; it never waits:
what the socket does not take at once is left to the thread.
"""

import socket
import struct
from collections.abc import Callable, Iterable, Iterator

from flask import request

from store.entries import Entry
from webapp.generation import Following

#: How long a client may take none of what is sent to it, before its connection is given up. Seconds.
#: It can come back and resume.
STALL_SECONDS = 30


class Outlet:
    """One client's socket, as gunicorn answers on it (HTTP/1.1, chunked)."""

    def __init__(self, own: socket.socket | None) -> None:
        #: None where there is no socket to write to: other servers, TLS, HTTP/1.0.
        self._socket = own
        self._rest = b""

    @classmethod
    def of_request(cls) -> "Outlet":
        """The outlet of the current request. To be made where the answer begins to be streamed."""
        own = request.environ.get("gunicorn.socket")
        if type(own) is not socket.socket:
            return cls(None)
        # gunicorn sends without a bound. This one ends its wait as a lost connection.
        own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", STALL_SECONDS, 0))
        chunked = request.environ.get("SERVER_PROTOCOL") == "HTTP/1.1" and request.method != "HEAD"
        return cls(own if chunked else None)

    @property
    def usable(self) -> bool:
        return self._socket is not None

    def offer(self, data: bytes) -> bool:
        """Send without waiting. False: the thread must call :meth:`flush`, and if that sends nothing, send ``data``."""
        if self._socket is None or self._rest:
            return False
        framed = b"%X\r\n%b\r\n" % (len(data), data)
        try:
            sent = self._socket.send(framed, socket.MSG_DONTWAIT)
        except OSError:
            # Full, or closed: the thread finds out which.
            return False
        self._rest = framed[sent:]
        return not self._rest

    def flush(self) -> bool:
        """Send what is left of the last offer, waiting; whether there was any. Raises ``OSError``."""
        if not self._rest or self._socket is None:
            return False
        rest, self._rest = self._rest, b""
        self._socket.sendall(rest)
        return True


def write_out(
    following: Following,
    entries: Iterable[Entry | None],
    write: Callable[[Entry | None], bytes],
    passes: Callable[[Entry], bool],
) -> Iterator[bytes]:
    """Yield what ``write`` makes of each entry, if anything.

    Entries that ``passes`` may go past this thread, once the answer has begun.
    """
    outlet = Outlet.of_request()

    def take(entry: Entry) -> bool:
        return passes(entry) and outlet.offer(write(entry))

    for entry in entries:
        if outlet.flush():
            # The rest was this entry's.
            continue
        data = write(entry)
        if data:
            yield data
            # Asked for more, so the head and this much are sent.
            if outlet.usable:
                following.shortcut(take)

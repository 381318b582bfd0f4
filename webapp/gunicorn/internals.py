"""The one door to what gunicorn 27 does not document. Nothing else in the project relies on such a part.

``tests/unit/webapp/test_gunicorn_internals.py`` checks what is relied on against the installed gunicorn.
"""

import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Any

import gunicorn.glogging
from gunicorn.http.errors import ParseException
from gunicorn.workers.base import Worker as Worker
from gunicorn.workers.gthread import TConn
from gunicorn.workers.gthread import ThreadWorker as ThreadWorker

#: With this status of a worker gunicorn ends as a whole, instead of starting another (``Arbiter.APP_LOAD_ERROR``).
APP_LOAD_ERROR = 4

#: What reading a chunked body raises that is framed wrongly, or ends early.
BrokenBody = ParseException


def client_socket(environ: Mapping[str, Any]) -> socket.socket | None:
    """Return the socket that the current call came through; None where it is no plain one (TLS, other servers).

    gunicorn puts it into the WSGI environment for applications that upgrade a connection.
    """
    found = environ.get("gunicorn.socket")
    return found if type(found) is socket.socket else None


def frame_chunk(data: bytes) -> bytes:
    """Frame a part of a body as gunicorn does on HTTP/1.1 (RFC 9112, 7.1): what follows its own parts must fit."""
    return b"%X\r\n%b\r\n" % (len(data), data)


def is_stopping(worker: Any) -> Callable[[], bool]:
    """Return a function that tells whether a worker of gunicorn was told to stop.

    Its hooks hand the worker over; that its ``alive`` turns False on SIGTERM is not documented.
    """
    return lambda: not worker.alive


class Connection(TConn):
    """A client's connection as gthread's handler takes it, which can tell without waiting what there is to read."""

    #: Whether it is registered with the epoll.
    polled = False

    def holds_data(self) -> bool:
        """Whether bytes of a next request were read already: no poll will tell of them."""
        if self.parser is None:
            return False
        pending = self.sock.pending() if isinstance(self.sock, ssl.SSLSocket) else 0
        return bool(self.parser.unreader.buf.getvalue()) or pending > 0

    def peek(self) -> bool | None:
        """Return whether there is something to read; None where the client has left. Never waits."""
        if isinstance(self.sock, ssl.SSLSocket):
            # It cannot be looked into: whoever reads finds out.
            return True
        try:
            return bool(self.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)) or None
        except BlockingIOError:
            return False
        except OSError:
            return None


class QuietLogger(gunicorn.glogging.Logger):
    """Gunicorn's logger without its access log, which it prepares for every call even when it is off.

    The front door writes an access log of its own.
    """

    def access(self, resp: Any, req: Any, environ: Any, request_time: Any) -> None:
        """Write nothing."""

"""The one door to what gunicorn 27 does not document. Nothing else in the project relies on such a part.

``tests/unit/webapp/test_gunicorn_internals.py`` checks what is relied on against the installed gunicorn.
"""

import socket
from collections.abc import Callable, Mapping
from typing import Any

import gunicorn.glogging
from gunicorn.http.errors import ParseException

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


class QuietLogger(gunicorn.glogging.Logger):
    """Gunicorn's logger without its access log, which it prepares for every call even when it is off.

    The front door writes an access log of its own.
    """

    def access(self, resp: Any, req: Any, environ: Any, request_time: Any) -> None:
        """Write nothing."""

"""The client's connection: whether it is still there, and whether this process may keep it."""

import socket
from collections.abc import Callable

from flask import request


class Lifecycle:
    """Whether the process was told to stop. Gunicorn's hook sets ``alive`` (``gunicorn.conf.py``)."""

    def __init__(self) -> None:
        self.alive: Callable[[], bool] = lambda: True

    @property
    def stopping(self) -> bool:
        return not self.alive()


def client_gone() -> Callable[[], bool]:
    """Return a function that tells whether the client of the current request has left.

    It peeks at the socket: a server that only writes would learn it at its second write,
    and while nothing is generated it writes nothing. Without gunicorn's socket it says no.
    """
    own: socket.socket | None = request.environ.get("gunicorn.socket")
    if own is None:
        return lambda: False

    def gone() -> bool:
        try:
            return own.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except (OSError, ValueError):
            return True

    return gone

"""The client's connection: whether it is still there."""

import contextlib
import socket
from collections.abc import Callable, Mapping
from typing import Any

from flask import request

from webapp.gunicorn.internals import client_socket


def client_disconnected() -> Callable[[], bool]:
    """Return a function that tells whether the client of the current call has left.

    It peeks at the socket: a server that only writes would learn it at its second write,
    and while nothing is generated it writes nothing. Without gunicorn's socket it says no.
    """
    connection = client_socket(request.environ)
    if connection is None:
        return lambda: False

    def disconnected() -> bool:
        try:
            return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except (OSError, ValueError):
            return True

    return disconnected


def stop_reading(environ: Mapping[str, Any]) -> Callable[[], None]:
    """Return a function that ends all reading from a call's connection, from any thread; answers can still be sent."""
    connection = client_socket(environ)

    def stop() -> None:
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RD)

    return stop

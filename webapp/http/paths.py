"""Shapes of the URL that clients make by joining texts: trailing and doubled slashes. No answer is a redirect.

A redirect would be worse than a 404: clients drop their key or their body on the way, and behind a proxy that ends
TLS it names the wrong scheme. So the path is put right before it is routed, for every face.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

from flask import Flask, abort, request

from text import has_control_characters

_SLASHES = re.compile("/{2,}")

WsgiApplication = Callable[[dict[str, Any], Any], Iterable[bytes]]


class PathRepair:
    """WSGI middleware."""

    def __init__(self, application: WsgiApplication) -> None:
        self._application = application

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path != "/" and (path.endswith("/") or "//" in path or not path):
            environ["PATH_INFO"] = _SLASHES.sub("/", path).rstrip("/") or "/"
        return self._application(environ, start_response)


def _refuse_control_characters() -> None:
    """No thing has a name with one in it, and not every database takes one."""
    for value in (request.view_args or {}).values():
        if isinstance(value, str) and has_control_characters(value):
            abort(404)


def install(app: Flask) -> None:
    """Repair the paths of every call of ``app``."""
    app.before_request(_refuse_control_characters)
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    app.wsgi_app = PathRepair(app.wsgi_app)  # type: ignore[method-assign]

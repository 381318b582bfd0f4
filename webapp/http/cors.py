"""Cross-origin requests: web pages that call the APIs from a browser (https://fetch.spec.whatwg.org/#http-cors-protocol).

The browser asks first (``OPTIONS``), without a key; so the question is answered before anybody is authenticated.
The headers are on every answer, errors and streams too: without them a page cannot even read why it was refused.
A page needs a key as everybody does, and no cookie counts, so that any origin may be let in.
"""

from flask import Flask, Response, request

from services.errors import ForeignPage
from webapp.http.current import services

#: What a page may send: the headers that the faces read, and what OpenAI's and other SDKs add by themselves.
_ALLOWED_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_DEFAULT_HEADERS = "Authorization, Content-Type, X-API-Key, Api-Key, Idempotency-Key, Last-Event-ID"
#: What a page may read beside the body.
_EXPOSED_HEADERS = (
    "Retry-After, Retry-After-Ms, X-Should-Retry, X-Request-Id, Request-Id, WWW-Authenticate, Allow, X-Model-Loading, "
    "OpenAI-Processing-Ms, X-RateLimit-Limit-Requests, X-RateLimit-Remaining-Requests, X-RateLimit-Reset-Requests, "
    "X-RateLimit-Limit-Tokens, X-RateLimit-Remaining-Tokens, X-RateLimit-Reset-Tokens"
)
#: How long a browser remembers the answer. Seconds; browsers cut it to two hours themselves.
_MAX_AGE_SECONDS = 7200
#: The word that switches it off.
_NONE = "none"
_ANY = "*"
#: Headers are text of a client: nothing but names and commas is echoed.
_HEADER_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_, ")


class Cors:
    """Answers browsers' questions, and lets pages of the configured origins read answers."""

    def __init__(self, app: Flask, origins: tuple[str, ...]) -> None:
        self._origins = {origin.rstrip("/").lower() for origin in origins} - {_NONE}
        app.before_request(self._refuse_foreign_pages)
        app.before_request(self._answer_preflight)
        app.after_request(self._add_headers)

    def _refuse_foreign_pages(self) -> None:
        """While nobody needs a key, any site could use this server through the browser of whoever runs it.

        A plain form, and a WebSocket, are sent without asking first. Raises ``ForeignPage``.
        """
        origin = request.headers.get("Origin")
        if origin is None or services().access.needs_key():
            return
        if origin.partition("://")[2].lower() != request.host.lower():
            raise ForeignPage

    def _answer_preflight(self) -> Response | None:
        if request.method != "OPTIONS":
            return None
        response = Response(status=204)
        response.headers["Allow"] = _ALLOWED_METHODS
        if request.headers.get("Access-Control-Request-Method") and self._allowed_origin() is not None:
            asked = request.headers.get("Access-Control-Request-Headers", "")
            plain = asked and set(asked.lower()) <= _HEADER_CHARACTERS
            response.headers["Access-Control-Allow-Methods"] = _ALLOWED_METHODS
            response.headers["Access-Control-Allow-Headers"] = asked if plain else _DEFAULT_HEADERS
            response.headers["Access-Control-Max-Age"] = str(_MAX_AGE_SECONDS)
            if request.headers.get("Access-Control-Request-Private-Network"):
                response.headers["Access-Control-Allow-Private-Network"] = "true"
        return response

    def _add_headers(self, response: Response) -> Response:
        if not self._origins or "Origin" not in request.headers:
            return response
        if _ANY not in self._origins:
            # The answer differs by origin: a cache must know.
            response.headers.add("Vary", "Origin")
        origin = self._allowed_origin()
        if origin is not None:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = _EXPOSED_HEADERS
        return response

    def _allowed_origin(self) -> str | None:
        """Return what the browser is told: the page's origin, ``*``, or None for a page that is not let in."""
        origin = request.headers.get("Origin")
        if origin is None or not self._origins or not services().access.needs_key():
            # While everybody is let in without a key, a page of any site would be.
            return None
        if _ANY in self._origins:
            return _ANY
        return origin if origin.lower() in self._origins else None

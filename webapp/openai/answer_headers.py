"""The headers of ``/v1`` that OpenAI's and Anthropic's SDKs, and proxies, read on every answer."""

import secrets
import time

from flask import Flask, Response, g, request

from services.limits import Allowance
from services.token_limits import TokenAllowance
from webapp.http.access_log import answer

#: Paths of this face that others know by these names.
_PATHS = ("/v1/", "/tokenize", "/detokenize", "/score", "/rerank", "/v2/", "/classify")
#: Anthropic's SDK reads another header than OpenAI's.
_MESSAGES = "/v1/messages"
#: What OpenAI itself sends.
_VERSION = "2020-10-01"


def request_id() -> str:
    """The id of the current call."""
    if "request_id" not in g:
        g.request_id = f"req_{secrets.token_hex(12)}"
    found: str = g.request_id
    return found


def install(app: Flask) -> None:
    """Write the headers on the answers of ``app``'s ``/v1``."""
    app.after_request(_write)


def _write(response: Response) -> Response:
    path = request.path
    if not path.startswith(_PATHS):
        return response
    headers = response.headers
    headers["X-Request-Id"] = request_id()
    # Until the first byte of the answer.
    headers["OpenAI-Processing-Ms"] = str(round((time.monotonic() - answer().started) * 1000))
    headers["OpenAI-Version"] = _VERSION
    if path.startswith(_MESSAGES):
        headers["Request-Id"] = request_id()
    requests: Allowance | None = g.get("allowance")
    tokens: TokenAllowance | None = g.get("token_allowance")
    for what, allowance in (("Requests", requests), ("Tokens", tokens)):
        if allowance is not None:
            headers[f"X-RateLimit-Limit-{what}"] = str(allowance.limit)
            headers[f"X-RateLimit-Remaining-{what}"] = str(allowance.remaining)
            headers[f"X-RateLimit-Reset-{what}"] = _duration(allowance.reset - time.time())
    return response


def _duration(seconds: float) -> str:
    """Return a time as Go writes it: ``12ms``, ``1s``, ``6m0s``."""
    if seconds < 1:
        return f"{max(0, round(seconds * 1000))}ms"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"

"""The id of each call of ``/v1``, in the headers that the SDKs read it from."""

import secrets

from flask import Flask, Response, g, request

_PATH = "/v1/"
#: Anthropic's SDK reads another header than OpenAI's.
_MESSAGES = "/v1/messages"


def request_id() -> str:
    """The id of the current call."""
    if "request_id" not in g:
        g.request_id = f"req_{secrets.token_hex(12)}"
    found: str = g.request_id
    return found


def install(app: Flask) -> None:
    """Give the answers of ``app``'s ``/v1`` their ids."""
    app.after_request(_write)


def _write(response: Response) -> Response:
    if request.path.startswith(_PATH):
        response.headers["X-Request-Id"] = request_id()
        if request.path.startswith(_MESSAGES):
            response.headers["Request-Id"] = request_id()
    return response

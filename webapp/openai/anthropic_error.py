"""Anthropic's error shape, of ``/v1/messages``."""

from typing import Any

from store.token_log.outcomes import Failure
from webapp.http.error_status import STATUS
from webapp.openai.answer_headers import request_id
from webapp.openai.error_body import error_body

#: The words that Anthropic's clients look at, by status (https://docs.anthropic.com/en/api/errors).
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_TOO_LARGE = "body_too_large"


def anthropic_error_body(failure: Failure) -> dict[str, Any]:
    """``type``, ``error`` with type and message, and ``request_id``."""
    too_large = bool(failure.details) and failure.details[0].type == _TOO_LARGE
    return from_openai(error_body(failure), 413 if too_large else STATUS[failure.code])


def from_openai(document: dict[str, Any], status: int) -> dict[str, Any]:
    """Return OpenAI's error in Anthropic's words; a ``status`` of 0 is one that is not known."""
    error = document["error"]
    if not status:
        status = 500 if error["type"] == "server_error" else 400
    kind = _TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")
    # There is no member for the field.
    field, message = error.get("param"), error["message"]
    message = message if not field or field in message else f"{field}: {message}"
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id()}

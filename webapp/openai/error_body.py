"""OpenAI's error shape, of ``/v1``."""

from typing import Any

from store.token_log.outcomes import Code, Failure

#: The words that OpenAI's clients look at: type and code.
_WORDS = {
    Code.UNAUTHORIZED: ("invalid_request_error", "invalid_api_key"),
    Code.FORBIDDEN: ("invalid_request_error", "insufficient_permissions"),
    Code.NOT_FOUND: ("invalid_request_error", "not_found"),
    Code.MODEL_NOT_FOUND: ("invalid_request_error", "model_not_found"),
    Code.MODEL_NOT_READY: ("server_error", "model_not_ready"),
    Code.INSUFFICIENT_RESOURCES: ("server_error", "service_unavailable"),
    Code.RATE_LIMITED: ("rate_limit_error", "rate_limit_exceeded"),
    Code.INTERNAL_ERROR: ("server_error", "internal_error"),
}


def error_body(failure: Failure) -> dict[str, Any]:
    """``error`` with message, type, param and code."""
    kind, code = _WORDS.get(failure.code, ("invalid_request_error", None))
    first = failure.details[0] if failure.details else None
    if first is not None and first.type == "token_quota":
        # Clients do not try again where they read these.
        kind = code = "insufficient_quota"
    sentences = [detail.description for detail in failure.details]
    if failure.code != Code.INVALID_REQUEST:
        # What happened, then what to do: a client shows this one text.
        sentences = list(dict.fromkeys([failure.message, *sentences]))
    message = "; ".join(sentences) or failure.message
    param = (first.field or None) if first else None
    return {"error": {"message": message, "type": kind, "param": param, "code": code or (first and first.type)}}

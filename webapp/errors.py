"""Errors of the front door, and how each dialect writes them. Nothing else makes error bodies."""

import math
import time
from collections.abc import Iterable
from typing import Any

from store.outcomes import Code, Detail, Failure

#: HTTP status of each code.
STATUS = {
    Code.INVALID_REQUEST: 400,
    Code.UNAUTHORIZED: 401,
    Code.FORBIDDEN: 403,
    Code.NOT_FOUND: 404,
    Code.MODEL_NOT_FOUND: 404,
    Code.TRAINING_JOB_NOT_FOUND: 404,
    Code.TRAINING_JOB_RUNNING: 400,
    Code.IDEMPOTENCY_CONFLICT: 409,
    Code.RATE_LIMITED: 429,
    Code.INTERNAL_ERROR: 500,
    Code.MODEL_NOT_READY: 503,
    Code.INSUFFICIENT_RESOURCES: 503,
}


class ApiError(Exception):
    """A request that is answered with an error. Carries what every dialect needs."""

    def __init__(self, failure: Failure, status: int | None = None, retry_after: int | None = None) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.status = status or STATUS[failure.code]
        #: Seconds after which a retry has a chance.
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers


def invalid(details: Iterable[Detail]) -> ApiError:
    """The body has faults, one detail each."""
    details = tuple(details)
    message = details[0].description if len(details) == 1 else f"The request has {len(details)} errors"
    return ApiError(Failure(Code.INVALID_REQUEST, message, details))


def unauthorized() -> ApiError:
    """The same for no key and a wrong one."""
    return ApiError(Failure(Code.UNAUTHORIZED, "A valid API key is required"))


def forbidden(right: str) -> ApiError:
    return ApiError(Failure(Code.FORBIDDEN, f"This API key does not have the right '{right}'"))


def model_not_found(model: str, field: str) -> ApiError:
    detail = Detail("model_not_found", field, f"Model '{model}' is not configured")
    return ApiError(Failure(Code.MODEL_NOT_FOUND, f"Invalid model ID: {model}", (detail,)))


def model_not_ready(model: str, loading: bool) -> ApiError:
    state = "is still being loaded" if loading else "has no running worker"
    detail = Detail("model_not_ready", "", f"Model '{model}' {state}")
    return ApiError(
        Failure(Code.MODEL_NOT_READY, f"Model '{model}' {state}", (detail,)), retry_after=5 if loading else 30
    )


def queue_full(model: str, waiting: int, bound: int) -> ApiError:
    description = f"{waiting} requests for model '{model}' are waiting already; at most {bound} may"
    detail = Detail("queue_full", "", description)
    return ApiError(Failure(Code.INSUFFICIENT_RESOURCES, description, (detail,)), retry_after=5)


def rate_limited(per_minute: int, reset: float) -> ApiError:
    wait = max(1, math.ceil(reset - time.time()))
    description = f"This API key may send {per_minute} requests a minute; try again in {wait} s"
    detail = Detail("requests_per_minute", "", description)
    return ApiError(Failure(Code.RATE_LIMITED, description, (detail,)), retry_after=wait)


def too_many_streams(limit: int) -> ApiError:
    description = f"This API key may have {limit} requests running at once"
    detail = Detail("concurrent_streams", "", description)
    return ApiError(Failure(Code.RATE_LIMITED, description, (detail,)), retry_after=1)


def idempotency_conflict() -> ApiError:
    description = "This Idempotency-Key was used before with another body"
    detail = Detail("idempotency_conflict", "Idempotency-Key", description)
    return ApiError(Failure(Code.IDEMPOTENCY_CONFLICT, description, (detail,)))


def job_not_found(job_id: str) -> ApiError:
    """The same for a job that never was and one of another key."""
    description = f"Training job '{job_id}' does not exist"
    return ApiError(Failure(Code.TRAINING_JOB_NOT_FOUND, description, (Detail("job_not_found", "jobId", description),)))


def wrong_job_state(state: str, wish: str) -> ApiError:
    """What is asked for cannot follow the state that the job is in."""
    description = f"A job that is {state} cannot be {wish}"
    code = Code.TRAINING_JOB_RUNNING if state == "running" else Code.INVALID_REQUEST
    return ApiError(Failure(code, description, (Detail("wrong_state", "status", description),)))


def adapter_not_found(name: str) -> ApiError:
    description = f"There is no adapter '{name}'"
    return ApiError(Failure(Code.NOT_FOUND, description, (Detail("adapter_not_found", "adapter", description),)))


def request_not_found(request_id: str) -> ApiError:
    """The same for one that never was, one that has expired, and one of another key."""
    description = f"Request '{request_id}' does not exist, or has expired"
    return ApiError(Failure(Code.NOT_FOUND, description, (Detail("request_not_found", "id", description),)))


def unknown_event_id() -> ApiError:
    description = "Last-Event-ID must be an id that a stream of this request had"
    return invalid([Detail("invalid_value", "lastEventId", description)])


def stopping(request_id: str) -> ApiError:
    description = "This server is being restarted; the request goes on"
    detail = Detail("server_stopping", "", f"Ask for it with GET /api/v1/inference/{request_id}")
    return ApiError(Failure(Code.INSUFFICIENT_RESOURCES, description, (detail,)), retry_after=1)


def redis_unavailable() -> ApiError:
    detail = Detail("redis_unavailable", "", "The service cannot reach its message store; try again shortly")
    return ApiError(
        Failure(Code.INSUFFICIENT_RESOURCES, "The service is temporarily unavailable", (detail,)), retry_after=2
    )


def database_unavailable() -> ApiError:
    detail = Detail("database_unavailable", "", "The service cannot reach its database; try again shortly")
    return ApiError(
        Failure(Code.INSUFFICIENT_RESOURCES, "The service is temporarily unavailable", (detail,)), retry_after=5
    )


def from_failure(failure: Failure) -> ApiError:
    """What a worker wrote as the end of a request."""
    retry = 5 if STATUS[failure.code] == 503 else None
    return ApiError(failure, retry_after=retry)


def native_body(failure: Failure) -> dict[str, Any]:
    """The envelope of ``/api/v1``."""
    return {"error": failure.to_dict()}


#: The words OpenAI's clients look at.
_OPENAI_CODES = {
    Code.UNAUTHORIZED: ("invalid_request_error", "invalid_api_key"),
    Code.FORBIDDEN: ("invalid_request_error", "insufficient_permissions"),
    Code.NOT_FOUND: ("invalid_request_error", "not_found"),
    Code.MODEL_NOT_FOUND: ("invalid_request_error", "model_not_found"),
    Code.MODEL_NOT_READY: ("server_error", "model_not_ready"),
    Code.INSUFFICIENT_RESOURCES: ("server_error", "service_unavailable"),
    Code.RATE_LIMITED: ("rate_limit_error", "rate_limit_exceeded"),
    Code.INTERNAL_ERROR: ("server_error", "internal_error"),
}


def openai_body(failure: Failure) -> dict[str, Any]:
    """OpenAI's error shape, of ``/v1``."""
    kind, code = _OPENAI_CODES.get(failure.code, ("invalid_request_error", None))
    first = failure.details[0] if failure.details else None
    message = "; ".join(detail.description for detail in failure.details) or failure.message
    param = (first.field or None) if first else None
    return {"error": {"message": message, "type": kind, "param": param, "code": code or (first and first.type)}}

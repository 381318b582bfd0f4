"""HTTP status and headers of each error of the tree, the same for every HTTP face."""

from services.errors import ServiceError
from store.token_log.outcomes import Code, Failure

#: HTTP status of each code (the interface document's table, and what goes beyond it).
STATUS = {
    Code.INVALID_REQUEST: 400,
    Code.UNAUTHORIZED: 401,
    Code.FORBIDDEN: 403,
    Code.NOT_FOUND: 404,
    Code.MODEL_NOT_FOUND: 404,
    Code.TRAINING_JOB_NOT_FOUND: 404,
    Code.TRAINING_JOB_RUNNING: 400,
    Code.IDEMPOTENCY_CONFLICT: 409,
    Code.CONFLICT: 409,
    Code.RATE_LIMITED: 429,
    Code.INTERNAL_ERROR: 500,
    Code.MODEL_NOT_READY: 503,
    Code.INSUFFICIENT_RESOURCES: 503,
}


#: The longest wait that OpenAI's SDK obeys. Seconds.
_LONGEST_WAIT = 120
#: Conflicts that the same request meets again.
_FINAL = (Code.CONFLICT, Code.IDEMPOTENCY_CONFLICT)


class HttpError(ServiceError):
    """What only HTTP knows: a method that is not allowed, a body that is too large."""

    def __init__(self, failure: Failure, status: int) -> None:
        self.code = failure.code
        super().__init__(failure.message, failure.details)
        self.status = status


def status_of(error: ServiceError) -> int:
    return error.status if isinstance(error, HttpError) else STATUS[error.failure.code]


def headers_of(error: ServiceError) -> dict[str, str]:
    headers = {}
    if error.retry_after is not None:
        # OpenAI's SDK does not obey where it is told to wait longer; where it shall not retry it may know.
        seconds = min(error.retry_after, _LONGEST_WAIT) if error.worth_retrying else error.retry_after
        headers["Retry-After"] = str(seconds)
        headers["Retry-After-Ms"] = str(seconds * 1000)
    if error.failure.code in _FINAL or not error.worth_retrying:
        # It would send a 409, or a 429, again and again.
        headers["X-Should-Retry"] = "false"
    if error.failure.code == Code.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return headers

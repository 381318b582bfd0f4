"""What can go wrong in a use case: one tree. A face maps it to its dialect once, and makes no errors of its own."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from redis.exceptions import RedisError
from sqlalchemy.exc import DataError, SQLAlchemyError

from store.token_log import outcomes
from store.token_log.outcomes import Code, Detail, Failure

log = logging.getLogger(__name__)


class ServiceError(Exception):
    """Root of this tree. ``failure`` is what the client reads, in every dialect."""

    #: Code of the interface document.
    code = Code.INTERNAL_ERROR
    #: Whether the same request may meet something else soon.
    worth_retrying = True

    def __init__(self, message: str, details: Iterable[Detail] = (), retry_after: int | None = None) -> None:
        super().__init__(message)
        self.failure = Failure(self.code, message, tuple(details))
        #: Seconds after which a retry has a chance; None where a retry changes nothing.
        self.retry_after = retry_after


class InternalError(ServiceError):
    """A fault of this software; the log has the details."""

    def __init__(self) -> None:
        super().__init__("Internal error; the log has the details")


class InvalidRequest(ServiceError):
    """The request has faults, one detail each."""

    code = Code.INVALID_REQUEST

    def __init__(self, details: Iterable[Detail]) -> None:
        details = tuple(details)
        message = details[0].description if len(details) == 1 else f"The request has {len(details)} errors"
        super().__init__(message, details)

    @classmethod
    def of(cls, kind: str, field: str, description: str) -> "InvalidRequest":
        """One fault: a stable word for programs, the dotted field, a sentence."""
        return cls([Detail(kind, field, description)])


class UnknownEventId(InvalidRequest):
    """``Last-Event-ID`` names no event of this stream."""

    def __init__(self) -> None:
        description = "Last-Event-ID must be an id that a stream of this request had"
        super().__init__([Detail("invalid_value", "lastEventId", description)])


class Unauthenticated(ServiceError):
    """No key, a wrong one, or one that was revoked: the same words for all."""

    code = Code.UNAUTHORIZED

    def __init__(self) -> None:
        super().__init__("A valid API key is required")


class ModelNotAllowed(ServiceError):
    """The key may not ask for the model."""

    code = Code.FORBIDDEN

    def __init__(self, model: str, allowed: Iterable[str], field: str) -> None:
        description = f"This API key may not use '{model}'; it may use: {', '.join(sorted(allowed)) or 'none'}"
        super().__init__(description, [Detail("model_not_allowed", field, description)])


class PermissionDenied(ServiceError):
    """The key lacks a scope."""

    code = Code.FORBIDDEN

    def __init__(self, scope: str) -> None:
        super().__init__(f"This API key does not have the scope '{scope}'")


class ModelNotDeletable(ServiceError):
    """A model that nobody trained here."""

    code = Code.FORBIDDEN

    def __init__(self, model: str) -> None:
        description = f"'{model}' is no fine-tuned model: operators remove the others (DELETE /api/v1/models/…)"
        super().__init__(description, [Detail("model_not_deletable", "model", description)])


class ForeignPage(ServiceError):
    """A page of another site calls a server that asks nobody for a key."""

    code = Code.FORBIDDEN

    def __init__(self) -> None:
        super().__init__("While no API key exists, web pages of other sites may not call; set CY_LLM_API_KEY")


class NotFound(ServiceError):
    """A thing of that name does not exist, or belongs to another tenant: the same words for both."""

    code = Code.NOT_FOUND


class RequestNotFound(NotFound):
    """No such request, or its record has expired."""

    def __init__(self, request_id: str) -> None:
        description = f"Request '{request_id}' does not exist, or has expired"
        super().__init__(description, [Detail("request_not_found", "id", description)])


class ResponseNotFound(NotFound):
    """No such response, or it was not stored, or has expired."""

    def __init__(self, response_id: str) -> None:
        description = f"Response '{response_id}' does not exist, was not stored, or has expired"
        super().__init__(description, [Detail("response_not_found", "response_id", description)])


class AdapterNotFound(NotFound):
    """No such adapter, or no such version of it."""

    def __init__(self, name: str) -> None:
        description = f"There is no adapter '{name}'"
        super().__init__(description, [Detail("adapter_not_found", "adapter", description)])


class FileNotFound(NotFound):
    """No such file, or it has expired."""

    def __init__(self, file_id: str, field: str = "id") -> None:
        description = f"No such File object: {file_id}"
        super().__init__(description, [Detail("file_not_found", field, description)])


class BatchNotFound(NotFound):
    """No such batch."""

    def __init__(self, batch_id: str) -> None:
        description = f"No batch found with id '{batch_id}'"
        super().__init__(description, [Detail("batch_not_found", "batch_id", description)])


class UploadNotFound(NotFound):
    """No such upload."""

    def __init__(self, upload_id: str) -> None:
        description = f"No such Upload object: {upload_id}"
        super().__init__(description, [Detail("upload_not_found", "upload_id", description)])


class JobNotFound(NotFound):
    """No such training job."""

    code = Code.TRAINING_JOB_NOT_FOUND

    def __init__(self, job_id: str) -> None:
        description = f"Training job '{job_id}' does not exist"
        super().__init__(description, [Detail("job_not_found", "jobId", description)])


class ModelNotFound(NotFound):
    """The model file has no such model."""

    code = Code.MODEL_NOT_FOUND

    def __init__(self, model: str, field: str) -> None:
        detail = Detail("model_not_found", field, f"Model '{model}' is not configured")
        super().__init__(f"Invalid model ID: {model}", [detail])


class ModelNotReady(ServiceError):
    """No worker serves the model now."""

    code = Code.MODEL_NOT_READY

    def __init__(self, model: str, loading: bool, failed: bool = False) -> None:
        if failed:
            failure = outcomes.cannot_load(model)
            super().__init__(failure.message, failure.details, 30)
            return
        description = f"Model '{model}' {'is still being loaded' if loading else 'has no running worker'}"
        super().__init__(description, [Detail("model_not_ready", "", description)], 5 if loading else 30)


class Unavailable(ServiceError):
    """The system cannot do it now; later it can."""

    code = Code.INSUFFICIENT_RESOURCES


class QueueFull(Unavailable):
    """As many requests wait for the model as may."""

    def __init__(self, model: str, waiting: int, bound: int) -> None:
        description = f"{waiting} requests for model '{model}' are waiting already; at most {bound} may"
        super().__init__(description, [Detail("queue_full", "", description)], 5)


class CheckBusy(Unavailable):
    """As many data sets are being checked as may be at once."""

    def __init__(self) -> None:
        description = "Other data sets are being checked; try again shortly"
        super().__init__(description, [Detail("dataset_check_busy", "", description)], 5)


class StorageFailed(Unavailable):
    """A file cannot be written, or read, now."""

    def __init__(self) -> None:
        description = "The service cannot write to, or read from, its files now; try again shortly"
        super().__init__(description, [Detail("storage_failed", "", description)], 30)


class ServerStopping(Unavailable):
    """This process was told to stop; the request goes on and can be followed elsewhere."""

    def __init__(self, request_id: str) -> None:
        detail = Detail("server_stopping", "", f"Ask for it with GET /api/v1/inference/{request_id}")
        super().__init__("This server is being restarted; the request goes on", [detail], 1)


class RedisUnavailable(Unavailable):
    """Redis is away, or does not answer in time."""

    def __init__(self) -> None:
        detail = Detail("redis_unavailable", "", "The service cannot reach its message store; try again shortly")
        super().__init__("The service is temporarily unavailable", [detail], 2)


class DatabaseUnavailable(Unavailable):
    """The SQL database is away."""

    def __init__(self) -> None:
        detail = Detail("database_unavailable", "", "The service cannot reach its database; try again shortly")
        super().__init__("The service is temporarily unavailable", [detail], 5)


class IdempotencyConflict(ServiceError):
    """The idempotency key began a request with another body."""

    code = Code.IDEMPOTENCY_CONFLICT

    def __init__(self) -> None:
        description = "This Idempotency-Key was used before with another body"
        super().__init__(description, [Detail("idempotency_conflict", "Idempotency-Key", description)])


class Conflict(ServiceError):
    """What is asked for cannot be done as things are; ``kind`` is a stable word."""

    code = Code.CONFLICT

    def __init__(self, kind: str, field: str, description: str) -> None:
        super().__init__(description, [Detail(kind, field, description)])


class WrongJobState(ServiceError):
    """What is asked for cannot follow the state that the job is in."""

    def __init__(self, state: str, wish: str) -> None:
        self.code = Code.TRAINING_JOB_RUNNING if state == "running" else Code.INVALID_REQUEST
        description = f"A job that is {state} cannot be {wish}"
        super().__init__(description, [Detail("wrong_state", "status", description)])


class RequestFailed(ServiceError):
    """How a worker, or failover, ended a request."""

    def __init__(self, failure: Failure) -> None:
        self.code = failure.code
        transient = failure.code in (Code.MODEL_NOT_READY, Code.INSUFFICIENT_RESOURCES)
        super().__init__(failure.message, failure.details, 5 if transient else None)


@contextmanager
def translated_errors() -> Iterator[None]:
    """Let what the stores raise inside the block come out as this tree's errors."""
    try:
        yield
    except (RedisError, SQLAlchemyError) as error:
        raise as_service_error(error) from error


def as_service_error(error: BaseException) -> ServiceError:
    """Return what an exception means to a client; what is not the client's doing is logged here, and only here."""
    match error:
        case ServiceError():
            return error
        case RedisError():
            log.error("Redis cannot be used: %s", error)
            return RedisUnavailable()
        case DataError():
            # PostgreSQL takes no NUL, and no half characters.
            return InvalidRequest.of("invalid_value", "", "A name or an id holds characters that no name has")
        case SQLAlchemyError():
            # Its text may hold values of the statement.
            log.error("The database cannot be used: %s", error.__class__.__name__)
            return DatabaseUnavailable()
        case _:
            log.error("Unexpected error", exc_info=error)
            return InternalError()

"""The error tree as gRPC statuses with details (https://cloud.google.com/apis/design/errors)."""

from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from services.errors import ServiceError
from store.token_log.outcomes import Code

#: gRPC's name of each code.
STATUS = {
    Code.INVALID_REQUEST: code_pb2.INVALID_ARGUMENT,
    Code.UNAUTHORIZED: code_pb2.UNAUTHENTICATED,
    Code.FORBIDDEN: code_pb2.PERMISSION_DENIED,
    Code.NOT_FOUND: code_pb2.NOT_FOUND,
    Code.MODEL_NOT_FOUND: code_pb2.NOT_FOUND,
    Code.TRAINING_JOB_NOT_FOUND: code_pb2.NOT_FOUND,
    Code.TRAINING_JOB_RUNNING: code_pb2.FAILED_PRECONDITION,
    Code.CONFLICT: code_pb2.FAILED_PRECONDITION,
    Code.IDEMPOTENCY_CONFLICT: code_pb2.ALREADY_EXISTS,
    Code.MODEL_NOT_READY: code_pb2.UNAVAILABLE,
    Code.INSUFFICIENT_RESOURCES: code_pb2.RESOURCE_EXHAUSTED,
    Code.RATE_LIMITED: code_pb2.RESOURCE_EXHAUSTED,
    Code.INTERNAL_ERROR: code_pb2.INTERNAL,
}
#: What a detail says more exactly than its code.
_DETAIL_STATUS = {
    "deadline_exceeded": code_pb2.DEADLINE_EXCEEDED,
    "redis_unavailable": code_pb2.UNAVAILABLE,
    "database_unavailable": code_pb2.UNAVAILABLE,
    "server_stopping": code_pb2.UNAVAILABLE,
}
_DOMAIN = "cy-llm"


def abort(context: grpc.ServicerContext, error: ServiceError) -> None:
    """End the call with the status that the error means. Raises what gRPC raises to end a call."""
    context.abort_with_status(rpc_status.to_status(rich_status(error)))


def rich_status(error: ServiceError) -> status_pb2.Status:
    """Return the error as ``google.rpc.Status``: its code, the fields at fault, and when to try again."""
    failure = error.failure
    code = next((_DETAIL_STATUS[d.type] for d in failure.details if d.type in _DETAIL_STATUS), STATUS[failure.code])
    details: list[Any] = [error_details_pb2.ErrorInfo(reason=failure.code, domain=_DOMAIN)]
    fields = [detail for detail in failure.details if detail.field]
    if fields:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(field=snake(d.field), description=d.description, reason=d.type)
            for d in fields
        ]
        details.append(error_details_pb2.BadRequest(field_violations=violations))
    if error.retry_after is not None:
        delay = duration_pb2.Duration(seconds=error.retry_after)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return status_pb2.Status(code=code, message=failure.message, details=[_packed(detail) for detail in details])


def snake(name: str) -> str:
    """A field's name as the proto has it."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def _packed(detail: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed

"""Who may call, and how an error leaves: one interceptor around every method."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import redis
from flask import Flask, g
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from sqlalchemy.exc import SQLAlchemyError

from store.keys import ANONYMOUS, KeyRing, Principal, Right
from store.outcomes import Code, Failure
from webapp import errors
from webapp.errors import ApiError

log = logging.getLogger(__name__)

#: gRPC's name of each code.
STATUS = {
    Code.INVALID_REQUEST: code_pb2.INVALID_ARGUMENT,
    Code.UNAUTHORIZED: code_pb2.UNAUTHENTICATED,
    Code.FORBIDDEN: code_pb2.PERMISSION_DENIED,
    Code.NOT_FOUND: code_pb2.NOT_FOUND,
    Code.MODEL_NOT_FOUND: code_pb2.NOT_FOUND,
    Code.TRAINING_JOB_NOT_FOUND: code_pb2.NOT_FOUND,
    Code.TRAINING_JOB_RUNNING: code_pb2.FAILED_PRECONDITION,
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
#: Open to everybody: load balancers ask it. Reflection is not: it tells what there is.
_PUBLIC = "/grpc.health.v1.Health/"
_TRAINING = ("/cy.llm.AiTraining/", "/cy.llm.TrainingService/")


class Guard(grpc.ServerInterceptor):
    """Authenticates a call, gives it the application's context, and maps what it raises."""

    def __init__(self, app: Flask, keys: KeyRing) -> None:
        self._app = app
        self._keys = keys

    def intercept_service(self, continuation: Callable[..., Any], details: grpc.HandlerCallDetails) -> Any:
        handler = continuation(details)
        if handler is None or details.method.startswith(_PUBLIC):
            return handler
        metadata = dict(details.invocation_metadata or ())
        training = details.method.startswith(_TRAINING)
        right = Right.TRAINING if training else Right.INFERENCE
        method = handler.stream_stream or handler.unary_stream or handler.unary_unary or handler.stream_unary
        wrapped: Any
        if handler.response_streaming:
            wrapped = self._streaming(method, metadata, right)
            kinds = (grpc.unary_stream_rpc_method_handler, grpc.stream_stream_rpc_method_handler)
        else:
            wrapped = self._single(method, metadata, right)
            kinds = (grpc.unary_unary_rpc_method_handler, grpc.stream_unary_rpc_method_handler)
        kind = kinds[int(handler.request_streaming)]
        return kind(wrapped, handler.request_deserializer, handler.response_serializer)

    def _single(self, method: Callable[..., Any], metadata: dict[str, Any], right: Right) -> Callable[..., Any]:
        def call(request: Any, context: grpc.ServicerContext) -> Any:
            with self._app.app_context():
                try:
                    g.principal = self._authenticate(metadata, right)
                    return method(request, context)
                except Exception as error:
                    abort(context, error)

        return call

    def _streaming(self, method: Callable[..., Any], metadata: dict[str, Any], right: Right) -> Callable[..., Any]:
        def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with self._app.app_context():
                try:
                    g.principal = self._authenticate(metadata, right)
                    yield from method(request, context)
                except Exception as error:
                    abort(context, error)

        return call

    def _authenticate(self, metadata: dict[str, Any], right: Right) -> Principal:
        token = metadata.get("x-api-key") or ""
        if not token:
            scheme, _, rest = str(metadata.get("authorization", "")).partition(" ")
            token = rest.strip() if scheme.lower() == "bearer" else ""
        principal = self._keys.authenticate(str(token)) if token else None
        if principal is None and not self._keys.configured():
            principal = ANONYMOUS
        if principal is None:
            raise errors.unauthorized()
        if not principal.may(right):
            raise errors.forbidden(right.value)
        return principal


def abort(context: grpc.ServicerContext, error: Exception) -> None:
    """End the call with the status that the error means. Raises what gRPC raises to end a call."""
    match error:
        case ApiError():
            known = error
        case redis.RedisError():
            log.error("Redis cannot be used: %s", error)
            known = errors.redis_unavailable()
        case SQLAlchemyError():
            log.error("The database cannot be used: %s", error.__class__.__name__, exc_info=error)
            known = errors.database_unavailable()
        case _:
            if context.code() is not None:
                # The call was ended inside already.
                raise error
            log.error("Unexpected error", exc_info=error)
            known = ApiError(Failure(Code.INTERNAL_ERROR, "Internal error; the log has the details"))
    context.abort_with_status(rpc_status.to_status(rich_status(known)))


def rich_status(error: ApiError) -> status_pb2.Status:
    """Return the error as ``google.rpc.Status`` with its details (https://cloud.google.com/apis/design/errors)."""
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
    packed = []
    for detail in details:
        own = any_pb2.Any()
        own.Pack(detail)
        packed.append(own)
    return status_pb2.Status(code=code, message=failure.message, details=packed)


def snake(name: str) -> str:
    """A field's name as the proto has it."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)

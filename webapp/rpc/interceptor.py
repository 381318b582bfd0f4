"""Around every method: who may call it, how an error leaves, and the line in the log."""

from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from services.access import Access
from services.errors import InvalidRequest, as_service_error
from services.request_log import AnswerRecord
from services.trace_parent import trace_id_of
from store.principal import Principal, Scope
from text import clean_token
from webapp.rpc.status import abort

#: Open to everybody: load balancers ask it. Reflection is not: it tells what there is.
_PUBLIC = "/grpc.health.v1.Health/"
_TRAINING = ("/cy.llm.AiTraining/", "/cy.llm.TrainingService/")


class CurrentCall:
    """What a servicer is told of the call besides gRPC's own context."""

    def __init__(
        self, principal: Principal, operation: str, idempotency_key: str, line: AnswerRecord, trace_id: str = ""
    ) -> None:
        self.principal = principal
        self.trace_id = trace_id
        self.idempotency_key = idempotency_key
        self.operation = operation
        self.line = line
        #: Set by a servicer that writes a line for each of its requests.
        self.writes_own_lines = False


_current: ContextVar[CurrentCall] = ContextVar("cy_llm_rpc_call")


def current_call() -> CurrentCall:
    """Return the call that this thread serves."""
    return _current.get()


class Interceptor(grpc.ServerInterceptor):
    """Authenticates a call and maps what its method raises."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def intercept_service(self, continuation: Callable[..., Any], details: grpc.HandlerCallDetails) -> Any:
        handler = continuation(details)
        if handler is None or details.method.startswith(_PUBLIC):
            return handler
        method = handler.stream_stream or handler.unary_stream or handler.unary_unary or handler.stream_unary
        wrapped: Any
        if handler.response_streaming:
            wrapped = self._streaming(method, details)
            kinds = (grpc.unary_stream_rpc_method_handler, grpc.stream_stream_rpc_method_handler)
        else:
            wrapped = self._single(method, details)
            kinds = (grpc.unary_unary_rpc_method_handler, grpc.stream_unary_rpc_method_handler)
        kind = kinds[int(handler.request_streaming)]
        return kind(wrapped, _lenient(handler.request_deserializer), handler.response_serializer)

    def _single(self, method: Callable[..., Any], details: grpc.HandlerCallDetails) -> Callable[..., Any]:
        def call(request: Any, context: grpc.ServicerContext) -> Any:
            with _Answering(self._access, details, context):
                return method(_checked(request), context)

        return call

    def _streaming(self, method: Callable[..., Any], details: grpc.HandlerCallDetails) -> Callable[..., Any]:
        def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with _Answering(self._access, details, context):
                yield from method(_checked(request), context)

        return call


class _Malformed:
    """Stands for a message that is none: gRPC would answer INTERNAL, as if the fault were this software's."""


def _lenient(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def parse_or_mark(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return _Malformed()

    return parse_or_mark


def _checked(request: Any) -> Any:
    """Return a message, or a stream of them that is checked as it is read. Raises ``InvalidRequest``."""
    if isinstance(request, _Malformed):
        description = "The message does not have the form of the service's .proto, or holds text that is not UTF-8"
        raise InvalidRequest.of("invalid_message", "", description)
    return map(_checked, request) if isinstance(request, Iterator) else request


class _Answering:
    """One call, from its authentication to its line in the log. Use it in ``with``."""

    def __init__(self, access: Access, details: grpc.HandlerCallDetails, context: grpc.ServicerContext) -> None:
        self._access = access
        self._details = details
        self._context = context
        self._line = AnswerRecord("grpc", details.method)
        self._metadata: dict[str, Any] = dict(details.invocation_metadata or ())
        self._call: CurrentCall | None = None

    def __enter__(self) -> None:
        try:
            principal = self._authenticate()
        except Exception as error:
            self._fail(error)
            raise
        trace_id = trace_id_of(str(self._metadata.get("traceparent", "")))
        self._call = CurrentCall(principal, self._details.method, self._idempotency_key, self._line, trace_id)
        _current.set(self._call)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception):
            self._fail(error)
        elif self._call is None or not self._call.writes_own_lines:
            self._line.write()

    @property
    def _idempotency_key(self) -> str:
        """As the HTTP header; it holds for all that the call begins."""
        return str(self._metadata.get("idempotency-key", ""))

    def _authenticate(self) -> Principal:
        principal = self._access.authenticate(*_tokens(self._metadata))
        self._line.principal = principal
        training = self._details.method.startswith(_TRAINING)
        self._access.require_scope(principal, Scope.TRAINING if training else Scope.INFERENCE)
        return principal

    def _fail(self, error: Exception) -> None:
        if self._context.code() is not None:
            # The call was ended inside already.
            return
        known = as_service_error(error)
        self._line.failed(known)
        if self._call is None or not self._call.writes_own_lines:
            self._line.write()
        abort(self._context, known)


def _tokens(metadata: dict[str, Any]) -> list[str]:
    """The keys of the call: ``x-api-key``, ``api-key``, ``authorization: Bearer``."""
    scheme, _, rest = clean_token(str(metadata.get("authorization", ""))).partition(" ")
    found = (metadata.get("x-api-key"), metadata.get("api-key"), rest if scheme.lower() == "bearer" else None)
    return [str(key) for key in found if key]

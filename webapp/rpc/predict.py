"""``StreamPredict``: any number of requests over one call, each on the path of every other face."""

import logging
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import grpc

import logs
from services.container import Services
from services.context import RequestContext
from services.errors import RequestFailed, ServerStopping, ServiceError, as_service_error
from services.inference.request_stream import ClientDisconnected, ProcessStopping, RequestStream
from services.inference.service import parse_event_id
from services.limit_errors import TooManyStreams
from services.request_log import AnswerRecord
from store.redis.request_records import RequestRecord
from store.token_log.entries import Entry, Kind, Outcome
from store.token_log.outcomes import Failure
from webapp.rpc import ai_service_pb2 as pb
from webapp.rpc.interceptor import CurrentCall
from webapp.rpc.predict_messages import MessageWriter, merge, to_body
from webapp.schemas.inference import InferenceSchema, to_request
from webapp.schemas.loading import load

log = logging.getLogger(__name__)

#: Requests that run over one call at once.
MAX_REQUESTS = 64
#: Messages that wait for a slow client; then the requests wait too, and read their logs later.
_MAX_WAITING = 256
#: How long a client may take none of what is sent to it, before its call is given up. Seconds.
_STALL_SECONDS = 60


class _Closed:
    """All has been said."""


class PredictCall:
    """One call: a thread that reads requests, one for each request, and gRPC's own that sends."""

    def __init__(self, services: Services, context: grpc.ServicerContext, call: CurrentCall) -> None:
        self._services = services
        self._context = context
        self._principal = call.principal
        self._operation = call.operation
        self._idempotency_key = call.idempotency_key
        self._trace_id = call.trace_id
        #: What the sending thread has still to do: an error, ``_Closed``, a message, or a writer with its entry.
        self._waiting: deque[Any] = deque()
        self._arrived = threading.Condition()
        self._disconnected = threading.Event()
        self._lock = threading.Lock()
        self._streams: set[RequestStream] = set()
        #: Threads that may still send: the reader, and one for each request.
        self._senders = 1
        self._requests_seen = 0
        #: Whether the call's first metadata was sent: once is all that there is.
        self._announced = False
        call.writes_own_lines = True
        context.add_callback(self._on_end)

    def run(self, requests: Iterator[Any]) -> Iterator[Any]:
        """Yield the messages of all requests until each has ended and no more can come. Raises ``ServiceError``."""
        threading.Thread(target=self._read, args=(requests,), name="rpc-read", daemon=True).start()
        while True:
            with self._arrived:
                self._arrived.wait_for(lambda: self._waiting)
                found = list(self._waiting)
                self._waiting.clear()
                self._arrived.notify_all()
            for item in merge(found):
                if item is _Closed:
                    return
                if isinstance(item, ServiceError):
                    raise item
                if not self._announced:
                    with self._lock:
                        self._announced = True
                yield item

    def _on_end(self) -> None:
        """The client has left, or the call has ended: whoever sleeps shall see it at once."""
        self._disconnected.set()
        with self._arrived:
            self._arrived.notify_all()
        with self._lock:
            for stream in self._streams:
                stream.interrupt()
        self._put(_Closed)

    def _read(self, requests: Iterator[Any]) -> None:
        try:
            for request in requests:
                self._requests_seen += 1
                self._begin(request)
        except grpc.RpcError:
            self._disconnected.set()
        except Exception as error:
            # gRPC raises a plain exception from the iterator of a call that was cancelled.
            if not self._disconnected.is_set() and self._context.is_active():
                self._put(as_service_error(error))
        finally:
            self._sender_done()

    def _begin(self, request: Any) -> None:
        line = AnswerRecord("grpc", self._operation, principal=self._principal)
        with self._lock:
            full = self._senders > MAX_REQUESTS
            if not full:
                self._senders += 1
        if full:
            self._fail(request, line, TooManyStreams("One call", MAX_REQUESTS))
            line.write()
            return
        threading.Thread(target=self._serve, args=(request, line), name="rpc-request", daemon=True).start()

    def _sender_done(self) -> None:
        with self._lock:
            self._senders -= 1
            last = self._senders == 0
        if last:
            self._put(_Closed)

    def _serve(self, request: Any, line: AnswerRecord) -> None:
        try:
            record, opened = self._admit(request)
            line.fields = record.log_fields
            with logs.bind(**record.log_fields), opened as stream:
                self._relay(stream, line)
        except ClientDisconnected:
            log.debug("The client of a call has left")
        except Exception as error:
            self._fail(request, line, as_service_error(error))
        finally:
            line.write()
            self._sender_done()

    def _admit(self, request: Any) -> tuple[RequestRecord, AbstractContextManager[RequestStream]]:
        inference, call = self._services.inference, self._request_context()
        if request.stream_id:
            record = inference.find(self._principal, request.stream_id)
            return record, inference.resume(call, record, parse_event_id(request.resume_after))
        body = load(InferenceSchema, to_body(request))
        submission = inference.admit(call, to_request(body, with_metadata=bool(body["metadata"])))
        return submission.record, inference.open(call, submission)

    def _request_context(self) -> RequestContext:
        return RequestContext(
            self._principal,
            self._operation,
            idempotency_key=self._idempotency_key,
            trace_id=self._trace_id,
            timeout=self._context.time_remaining(),
            disconnected=self._disconnected.is_set,
            on_model_loading=self._announce_loading,
        )

    def _announce_loading(self, model: str) -> None:
        # Only what comes before the first message can be told.
        with self._lock:
            if not self._announced:
                self._announced = True
                self._context.send_initial_metadata((("x-model-loading", model),))

    def _relay(self, stream: RequestStream, line: AnswerRecord) -> None:
        with self._lock:
            self._streams.add(stream)
        try:
            self._send_entries(MessageWriter(stream.record, stream.chunks_before, line.started), stream)
        except ProcessStopping:
            raise ServerStopping(stream.record.id) from None
        finally:
            with self._lock:
                self._streams.discard(stream)

    def _send_entries(self, writer: MessageWriter, stream: RequestStream) -> None:
        def handle(entry: Entry) -> bool:
            return entry.kind == Kind.TEXT and self._put((writer, entry), wait=False)

        for entry in stream.entries():
            if entry is None:
                continue
            if entry.kind == Kind.TEXT:
                self._put((writer, entry))
                stream.set_direct_handler(handle)
            elif entry.terminal:
                end = entry.json()
                if end["outcome"] == Outcome.ERROR:
                    raise RequestFailed(Failure.from_dict(end["error"]))
                self._put((writer, entry))

    def _fail(self, request: Any, line: AnswerRecord, error: ServiceError) -> None:
        """End the call with the error, or, where it carries more than this request, only the request."""
        line.failed(error)
        with self._lock:
            alone = self._senders <= 2 and self._requests_seen <= 1
        if alone:
            self._put(error)
            return
        failure = error.failure
        details = [pb.ErrorDetail(type=d.type, field=d.field, description=d.description) for d in failure.details]
        message = pb.StreamPredictResponse(
            trace_id=request.metadata.trace_id,
            stream_id=line.fields.get("request_id", request.stream_id),
            end_of_stream=True,
            error=pb.Error(code=failure.code, message=failure.message, details=details),
        )
        self._put(message)

    def _put(self, item: Any, wait: bool = True) -> bool:
        """Queue an item; waits for a slow client, but not for one that has left. False where it may not wait."""
        with self._arrived:
            if len(self._waiting) >= _MAX_WAITING:
                if not wait:
                    return False
                if not self._arrived.wait_for(self._has_room, _STALL_SECONDS):
                    log.warning("A client took nothing for %d seconds, its call is given up", _STALL_SECONDS)
                    self._disconnected.set()
                    self._context.cancel()
            self._waiting.append(item)
            self._arrived.notify_all()
        return True

    def _has_room(self) -> bool:
        return len(self._waiting) < _MAX_WAITING or self._disconnected.is_set()

"""``StreamPredict``: any number of requests over one call, each on the path of every other face."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from flask import Flask, g
from marshmallow import ValidationError
from redis.exceptions import RedisError

import logs
from store.entries import Entry, Kind, Outcome
from store.keys import Principal
from store.outcomes import Code, Failure
from store.requests import RequestRecord
from webapp import errors, generation
from webapp.bodies import details_of, instance
from webapp.errors import ApiError
from webapp.generation import ClientGone, Following, ProcessStopping
from webapp.outlet import STALL_SECONDS
from webapp.rpc import ai_service_pb2 as pb
from webapp.services import Services
from webapp.v1 import admission
from webapp.v1.requests import find, last_event_id
from webapp.v1.schemas import InferenceSchema

log = logging.getLogger(__name__)

#: Requests that run over one call at once.
MAX_REQUESTS = 64
#: Messages that wait for a slow client; then the requests wait too, and read their logs later.
_MAX_WAITING = 256


class _Closed(Exception):
    """All has been said."""


class Call:
    """One call: a thread that reads requests, one for each request, and gRPC's own that sends."""

    def __init__(self, app: Flask, own: Services, context: grpc.ServicerContext, principal: Principal) -> None:
        self._app = app
        self._own = own
        self._context = context
        self._principal = principal
        #: What the sending thread has still to do: an error, ``_Closed``, a message, or a writer with its entry.
        self._waiting: deque[Any] = deque()
        self._arrived = threading.Condition()
        self._gone = threading.Event()
        self._lock = threading.Lock()
        self._followings: set[Following] = set()
        self._open = 1
        self._seen = 0
        context.add_callback(self._on_end)

    def run(self, requests: Iterator[Any]) -> Iterator[Any]:
        """Yield the messages of all requests until each has ended and no more can come. Raises ``ApiError``."""
        threading.Thread(target=self._read, args=(requests,), name="rpc-read", daemon=True).start()
        while True:
            with self._arrived:
                self._arrived.wait_for(lambda: self._waiting)
                found = list(self._waiting)
                self._waiting.clear()
                self._arrived.notify_all()
            for item in _merged(found):
                if item is _Closed:
                    return
                if isinstance(item, ApiError):
                    raise item
                yield item

    def _on_end(self) -> None:
        """The client has left, or the call has ended: whoever sleeps shall see it at once."""
        self._gone.set()
        with self._arrived:
            self._arrived.notify_all()
        with self._lock:
            for following in self._followings:
                following.interrupt()
        self._put(_Closed)

    def _read(self, requests: Iterator[Any]) -> None:
        try:
            for request in requests:
                self._seen += 1
                self._begin(request)
        except grpc.RpcError:
            self._gone.set()
        except Exception:
            # gRPC raises a plain exception from the iterator of a call that was cancelled.
            if not self._gone.is_set() and self._context.is_active():
                log.exception("The requests of a call cannot be read")
                failure = Failure(Code.INTERNAL_ERROR, "Internal error; the log has the details")
                self._put(errors.from_failure(failure))
        finally:
            self._leave()

    def _begin(self, request: Any) -> None:
        with self._lock:
            if self._open > MAX_REQUESTS:
                full = True
            else:
                full = False
                self._open += 1
        if full:
            self._fail(request, "", errors.too_many_streams(MAX_REQUESTS))
            return
        arrived = time.monotonic()
        threading.Thread(target=self._serve, args=(request, arrived), name="rpc-request", daemon=True).start()

    def _leave(self) -> None:
        with self._lock:
            self._open -= 1
            last = self._open == 0
        if last:
            self._put(_Closed)

    def _serve(self, request: Any, arrived: float) -> None:
        with self._app.app_context():
            g.principal = self._principal
            try:
                self._follow(request, arrived)
            except ClientGone:
                log.debug("The client of a call has left")
            except ApiError as error:
                self._fail(request, request.stream_id, error)
            except RedisError as error:
                log.error("Redis cannot be used: %s", error)
                self._fail(request, request.stream_id, errors.redis_unavailable())
            except Exception:
                log.exception("A request failed")
                failure = Failure(Code.INTERNAL_ERROR, "Internal error; the log has the details")
                self._fail(request, request.stream_id, errors.from_failure(failure))
            finally:
                self._leave()

    def _follow(self, request: Any, arrived: float) -> None:
        record, follow = self._admit(request)
        fields = {"request_id": record.id, "model": record.model, **record.metadata}
        with logs.bind(**fields), follow() as following:
            with self._lock:
                self._followings.add(following)
            try:
                self._send_entries(_Writer(record, following.offset, arrived), following)
            except ProcessStopping:
                raise errors.stopping(record.id) from None
            finally:
                with self._lock:
                    self._followings.discard(following)
                log.info("gRPC request left", extra={"key": self._principal.name})

    def _admit(self, request: Any) -> tuple[RequestRecord, Callable[[], Any]]:
        if request.stream_id:
            record = find(self._own, request.stream_id)
            after = last_event_id(request.resume_after)
            return record, lambda: generation.attach(self._own, record, after)
        try:
            body = instance(InferenceSchema).load(to_body(request))
        except ValidationError as error:
            raise errors.invalid(details_of(error)) from error
        remaining = self._context.time_remaining()
        admitted = admission.accept(self._own, body, bool(body["metadata"]), key="", timeout=remaining)
        return admitted.record, lambda: admitted.follow(self._own)

    def _send_entries(self, writer: "_Writer", following: Following) -> None:
        def take(entry: Entry) -> bool:
            return entry.kind == Kind.TEXT and self._put((writer, entry), wait=False)

        for entry in following.entries(self._gone.is_set):
            if entry is None:
                continue
            if entry.kind == Kind.TEXT:
                self._put((writer, entry))
                following.shortcut(take)
            elif entry.terminal:
                end = entry.json()
                if end["outcome"] == Outcome.ERROR:
                    raise errors.from_failure(Failure.from_dict(end["error"]))
                self._put((writer, entry))

    def _fail(self, request: Any, stream_id: str, error: ApiError) -> None:
        """End the call with the error, or, where it carries more than this request, only the request."""
        with self._lock:
            alone = self._open <= 2 and self._seen <= 1
        if alone:
            self._put(error)
            return
        failure = error.failure
        details = [pb.ErrorDetail(type=d.type, field=d.field, description=d.description) for d in failure.details]
        told = pb.Error(code=failure.code, message=failure.message, details=details)
        trace_id = request.metadata.trace_id
        self._put(pb.StreamPredictResponse(trace_id=trace_id, stream_id=stream_id, end_of_stream=True, error=told))

    def _put(self, item: Any, wait: bool = True) -> bool:
        """Queue an item; waits for a slow client, but not for one that has left. False where it may not wait."""
        with self._arrived:
            if len(self._waiting) >= _MAX_WAITING:
                if not wait:
                    return False
                room = self._arrived.wait_for(self._has_room, STALL_SECONDS)
                if not room:
                    log.warning("A client took nothing for %d seconds, its call is given up", STALL_SECONDS)
                    self._gone.set()
                    self._context.cancel()
            self._waiting.append(item)
            self._arrived.notify_all()
        return True

    def _has_room(self) -> bool:
        return len(self._waiting) < _MAX_WAITING or self._gone.is_set()


def _merged(items: list[Any]) -> Iterator[Any]:
    """Yield what is to be sent for ``items``: chunks that waited for the same request leave as one."""
    texts: dict[_Writer, list[Entry]] = {}
    for item in items:
        if isinstance(item, tuple):
            writer, entry = item
            if not entry.terminal:
                texts.setdefault(writer, []).append(entry)
                continue
            if writer in texts:
                yield writer.text(texts.pop(writer))
            yield writer.end(entry)
        else:
            yield from (writer.text(entries) for writer, entries in texts.items())
            texts.clear()
            yield item
    yield from (writer.text(entries) for writer, entries in texts.items())


class _Writer:
    """Makes one request's messages."""

    def __init__(self, record: RequestRecord, offset: int, arrived: float) -> None:
        trace_id = record.metadata.get("traceId") or record.id
        self._common = pb.StreamPredictResponse(trace_id=trace_id, stream_id=record.id)
        self._arrived = arrived
        self._next = offset
        self._first = 0.0
        self._first_tokens = 0
        self._tokens = 0

    def text(self, entries: list[Entry]) -> Any:
        """One message for all of the entries."""
        now = time.monotonic()
        count = sum(entry.token_count for entry in entries)
        self._tokens += count
        if not self._first:
            self._first, self._first_tokens = now, count
        chunk = "".join(entry.json()["text"] for entry in entries)
        message = self._message(now, entries[-1], chunk=chunk, index=self._next)
        self._next += 1
        return message

    def end(self, entry: Entry) -> Any:
        end = entry.json()
        usage = end["usage"] or {}
        values = {"finish_reason": end["reason"] or "", "prompt_tokens": usage.get("prompt_tokens", 0)}
        message = self._message(time.monotonic(), entry, end_of_stream=True, index=self._next, **values)
        if "completion_tokens" in usage:
            message.completion_tokens = usage["completion_tokens"]
        return message

    def _message(self, now: float, entry: Entry, **values: Any) -> Any:
        took = now - self._first
        rate = (self._tokens - self._first_tokens) / took if self._first and took > 0 else 0.0
        message = pb.StreamPredictResponse()
        # What is the same in every message is copied, not set anew.
        message.CopyFrom(self._common)
        message.resume_token = str(entry.id)
        message.ttft_ms = (self._first - self._arrived) * 1000 if self._first else 0.0
        message.tokens_per_sec = rate
        message.completion_tokens = self._tokens
        for name, value in values.items():
            setattr(message, name, value)
        return message


def to_body(request: Any) -> dict[str, Any]:
    """Return a ``StreamPredictRequest`` as a body of the native API; what is unset is left out."""
    given = request.generation
    names = {
        "maxNewTokens": "max_new_tokens",
        "temperature": "temperature",
        "topP": "top_p",
        "repetitionPenalty": "repetition_penalty",
    }
    own = request.metadata
    metadata = {"traceId": own.trace_id, "tenant": own.tenant, "playerId": own.player_id, "locale": own.locale}
    body: dict[str, Any] = {
        "modelId": request.model_id,
        "prompt": request.prompt,
        "priority": request.priority,
        "workerHint": request.worker_hint,
        "generation": {ours: getattr(given, name) for ours, name in names.items() if given.HasField(name)},
        "metadata": {name: value for name, value in metadata.items() if value},
    }
    if request.adapter:
        body["adapter"] = request.adapter
    return body

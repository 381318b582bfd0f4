"""Passes a body to a worker's own OpenAI application and its answer back, bytes untouched."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack

from flask import Response

from services.errors import RequestFailed, ServiceError, as_service_error
from services.inference.performance import Performance
from services.inference.request_stream import ClientDisconnected, RequestStream
from services.inference.submission import OpenAIRequest, Submission
from store.redis.request_records import RequestRecord
from store.token_log.entries import START, Entry, Kind, Outcome, encode
from webapp.gunicorn.socket_writer import stream_response
from webapp.http import sse
from webapp.http.access_log import answer, bind_log_fields
from webapp.http.current import context, services
from webapp.openai.answer_headers import request_id
from webapp.openai.dialects import Dialect, DialectMaker, OpenAIDialect, Skipping, dialect_of
from webapp.openai.whole_answer import Cancelled, failure_of, read_body, read_head

#: How often a call is begun anew whose idempotency key had joined it to one that was just being given up.
_TRIES = 3


def relay(request: OpenAIRequest, streamed: bool, dialect: DialectMaker = OpenAIDialect) -> Response:
    """Send a request to its model's worker and answer as the worker's application answers."""
    for _ in range(_TRIES - 1):
        try:
            return _relay(request, streamed, dialect)
        except _JoinedALostTry:
            # Its key is free now: the next try is a request of its own.
            continue
    return _relay(request, streamed, dialect)


def follow(record: RequestRecord, received: int) -> Response:
    """Answer with what a client that left its stream has not received: all but the first ``received`` events."""
    with ExitStack() as stack:
        stack.enter_context(bind_log_fields(record))
        stream = stack.enter_context(services().inference.resume(context(), record, START))
        stream.finish_when_stopping = True
        entries = stream.entries()
        head = read_head(entries, patient=False)
        dialect = Skipping(dialect_of(record.payload["path"]), received)
        return sse.response(_events(stack.pop_all(), stream, entries, dialect), head["status"] if head else 200)


class _JoinedALostTry(RequestFailed):
    """The request that the idempotency key had begun was cancelled meanwhile, with the client of its first try."""


def _relay(request: OpenAIRequest, streamed: bool, dialect: DialectMaker) -> Response:
    inference, call = services().inference, context()
    submission = inference.admit_openai(call, request)
    with ExitStack() as stack:
        stack.enter_context(bind_log_fields(submission.record))
        refusal = stack.enter_context(Refusal(request, submission))
        stream = stack.enter_context(inference.open(call, submission))
        # Its clients do not come back by themselves: it may finish while the process stops.
        stream.finish_when_stopping = True
        entries = stream.entries()
        try:
            head = read_head(entries, patient=not streamed)
            if head is None or head["content_type"].startswith("text/event-stream"):
                return sse.response(
                    _events(stack.pop_all(), stream, entries, dialect()), head["status"] if head else 200
                )
            status = head["status"]
            whole, end = read_body(entries)
            if status >= 400:
                refusal.tell()
                whole = dialect().refusal_body(whole, status)
            elif request.tells_performance:
                performance = Performance(answer().started, request_id())
                measured = performance.report_of(end, stream.opened_at, time.monotonic())
                whole = encode({**json.loads(whole), "performance": measured})
            return Response(whole, status=status, content_type=head["content_type"])
        except ClientDisconnected:
            return Response(status=499)
        except Cancelled as error:
            if submission.route is None:
                raise _JoinedALostTry(error.failure) from None
            raise


class Refusal:
    """Tells whoever made a request that its client got an error instead of the beginning of an answer."""

    def __init__(self, request: OpenAIRequest, submission: Submission) -> None:
        self._tell = request.on_refusal if submission.route is not None else None
        self._record = submission.record

    def __enter__(self) -> "Refusal":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, ServiceError) and not issubclass(kind, Cancelled):
            self.tell()

    def tell(self) -> None:
        if self._tell is not None:
            self._tell(self._record)


def _events(
    stack: ExitStack, stream: RequestStream, entries: Iterator[Entry | None], dialect: Dialect
) -> Iterator[bytes]:
    status = 200
    line = answer()

    def render(entry: Entry | None) -> bytes:
        nonlocal status
        if entry is None:
            return sse.KEEPALIVE
        if entry.kind == Kind.HEAD:
            status = entry.json()["status"]
        elif entry.kind == Kind.BODY:
            # A refusal that comes after the stream was begun is JSON: one event.
            if status != 200:
                return dialect.refusal(entry.data)
            return dialect.pass_on(entry.data)
        elif entry.terminal and entry.json()["outcome"] != Outcome.FINISHED:
            failure = failure_of(entry)
            line.code = failure.code
            return dialect.error(failure)
        return b""

    with stack:
        try:
            yield from stream_response(stream, entries, render, lambda entry: entry.kind == Kind.BODY)
        except ClientDisconnected:
            return
        except OSError:
            # The socket is broken, or its client does not read: gunicorn must not end the body as if it were whole.
            raise
        except Exception as error:
            known = as_service_error(error)
            line.failed(known)
            yield dialect.error(known.failure)

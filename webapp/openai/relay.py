"""Passes a body to a worker's own OpenAI application and its answer back, bytes untouched."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from flask import Response

import logs
from engines.registry import ModelSpec
from store.adapters import reference
from store.entries import Entry, Kind, Outcome, encode
from store.models import Adapter
from store.outcomes import Code, Failure
from store.requests import RequestRecord, new_request_id
from webapp import access, auth, errors, generation, idempotency, sse
from webapp.connection import client_gone
from webapp.generation import ClientGone, Following
from webapp.outlet import write_out
from webapp.services import Services


def relay(own: Services, spec: ModelSpec, path: str, body: dict[str, Any], adapter: Adapter | None = None) -> Response:
    """Send ``body`` to ``path`` of the worker's application and answer as it answers."""
    principal = auth.principal()
    own.limiter.count_request(principal.id)
    plan = None
    record = idempotency.find(own, principal.id, body)
    if record is None:
        plan = generation.admit(own, spec)
        record = RequestRecord.openai(
            id=new_request_id(),
            model=spec.id,
            owner=principal.id,
            deadline=time.time() + own.settings.request_timeout,
            path=path,
            # The version that the name means now, so that the answer stays on it.
            body=encode({**body, "model": reference(adapter) if adapter else spec.id}),
            adapter=adapter.path if adapter else None,
        )
        earlier = idempotency.remember(own, record, body)
        if earlier is not None:
            record, plan = earlier, None
    note = None if plan is None else idempotency.name_of(principal.id)
    with ExitStack() as stack:
        stack.enter_context(logs.bind(**access.note(record)))
        with idempotency.forget_on_error(own, note):
            stack.enter_context(own.limiter.hold_stream(record.owner, record.id))
            if plan is None:
                following = stack.enter_context(generation.attach(own, record))
            else:
                following = stack.enter_context(generation.begin(own, record, plan))
        # An OpenAI stream has no ids to resume from: it may finish while the process stops.
        following.finish_when_stopping = True
        entries = following.entries(client_gone())
        try:
            head = _head(entries, patient=not body.get("stream"))
            if head is None or head["content_type"].startswith("text/event-stream"):
                return sse.response(_events(stack.pop_all(), following, entries), head["status"] if head else 200)
            return Response(_whole_body(entries), status=head["status"], content_type=head["content_type"])
        except ClientGone:
            return Response(status=499)


def _head(entries: Iterator[Entry | None], patient: bool) -> dict[str, Any] | None:
    """Wait for the head of the answer.

    A stream is begun without it (None) when it is late, so that keep-alive comments can
    be sent. Raises ``ApiError`` when the request ended before it.
    """
    for entry in entries:
        if entry is None and not patient:
            return None
        if entry is not None and entry.kind == Kind.HEAD:
            return entry.json()
        if entry is not None and entry.terminal:
            raise _error(entry)
    raise AssertionError("a log always ends with a terminal entry")


def _whole_body(entries: Iterator[Entry | None]) -> bytes:
    parts = []
    for entry in entries:
        if entry is not None and entry.kind == Kind.BODY:
            parts.append(entry.data)
        elif entry is not None and entry.terminal and entry.json()["outcome"] != Outcome.FINISHED:
            raise _error(entry)
    return b"".join(parts)


def _events(stack: ExitStack, following: Following, entries: Iterator[Entry | None]) -> Iterator[bytes]:
    status = 200

    def write(entry: Entry | None) -> bytes:
        nonlocal status
        if entry is None:
            return sse.KEEPALIVE
        if entry.kind == Kind.HEAD:
            status = entry.json()["status"]
        elif entry.kind == Kind.BODY:
            # A refusal that comes after the stream was begun is JSON: one event.
            return entry.data if status == 200 else sse.event(entry.data)
        elif entry.terminal and entry.json()["outcome"] != Outcome.FINISHED:
            return sse.event(encode(errors.openai_body(_failure(entry))))
        return b""

    with stack:
        try:
            yield from write_out(following, entries, write, lambda entry: entry.kind == Kind.BODY)
        except ClientGone:
            return


def _error(entry: Entry) -> errors.ApiError:
    return errors.from_failure(_failure(entry))


def _failure(entry: Entry) -> Failure:
    end = entry.json()
    if end["outcome"] == Outcome.CANCELLED:
        return Failure(Code.INSUFFICIENT_RESOURCES, "The request was cancelled")
    return Failure.from_dict(end["error"])

"""``/api/v1/inference``: one answer, or a stream of server-sent events."""

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from typing import Any

from flask import Blueprint, Response, jsonify

import logs
from store.entries import Entry, Kind, Outcome, encode
from store.outcomes import Failure
from store.requests import RequestRecord
from webapp import access, errors, sse
from webapp.bodies import parse
from webapp.connection import client_gone
from webapp.generation import ClientGone, Following, ProcessStopping
from webapp.outlet import write_out
from webapp.services import Services, services
from webapp.turns import in_turn
from webapp.v1 import admission
from webapp.v1.chunks import ChunkWriter
from webapp.v1.schemas import InferenceSchema

bp = Blueprint("inference", __name__, url_prefix="/api/v1")


@bp.post("/inference")
@in_turn
def infer() -> Response:
    """Generate and answer with the whole text."""
    own = services()
    admitted = admission.accept(own, parse(InferenceSchema))
    record = admitted.record
    with logs.bind(**access.note(record)), admitted.follow(own) as following:
        texts: list[str] = []
        try:
            for entry in following.entries(client_gone()):
                if entry is not None and entry.kind == Kind.TEXT:
                    texts.append(entry.json()["text"])
                elif entry is not None and entry.terminal:
                    return jsonify(_answer(record, "".join(texts), require_finished(entry)))
        except ClientGone:
            return Response(status=499)
        except ProcessStopping:
            raise errors.stopping(record.id) from None
    raise AssertionError("a log always ends with a terminal entry")


@bp.post("/inference/stream")
@in_turn
def stream() -> Response:
    """Generate and answer with chunks as they come."""
    return _stream(with_metadata=False)


@bp.post("/inference/streamWithMetadata")
@in_turn
def stream_with_metadata() -> Response:
    """As ``/inference/stream``; every chunk carries the request's metadata."""
    return _stream(with_metadata=True)


def _stream(with_metadata: bool) -> Response:
    own = services()
    admitted = admission.accept(own, parse(InferenceSchema), with_metadata)
    with ExitStack() as stack:
        stack.enter_context(logs.bind(**access.note(admitted.record)))
        following = stack.enter_context(admitted.follow(own))
        return respond(own, stack, admitted.record, following)


def respond(own: Services, stack: ExitStack, record: RequestRecord, following: Following) -> Response:
    """Answer with the stream. ``stack`` holds what must be closed at its end.

    The status is decided by what comes first: an error before any text is a plain error
    response. When nothing comes for long, the stream is begun all the same.
    """
    entries = following.entries(client_gone())
    first: list[Entry | None] = []
    try:
        for entry in entries:
            if entry is None or entry.kind not in (Kind.OPEN, Kind.RELEASE):
                first.append(entry)
                break
    except ClientGone:
        return Response(status=499)
    except ProcessStopping:
        raise errors.stopping(record.id) from None
    if first[0] is not None and first[0].terminal:
        require_finished(first[0])
    return sse.response(_events(stack.pop_all(), record, following, first, entries))


def _events(
    stack: ExitStack,
    record: RequestRecord,
    following: Following,
    first: list[Entry | None],
    rest: Iterator[Entry | None],
) -> Iterator[bytes]:
    chunks = ChunkWriter.of(record, following.offset)

    def write(entry: Entry | None) -> bytes:
        return b"".join(
            sse.event(chunk.data, chunk.event_id, chunk.name) if chunk else sse.KEEPALIVE
            for chunk in chunks.write(entry)
        )

    with stack:
        try:
            yield from write_out(following, chain(first, rest), write, lambda entry: entry.kind == Kind.TEXT)
        except ClientGone:
            return
        except ProcessStopping:
            # No ``[DONE]``: a client that knows the last id goes on elsewhere.
            told = {"id": record.id, "lastEventId": str(following.position), "resumable": True}
            yield sse.event(encode(told), name="interrupted")


def _answer(record: RequestRecord, text: str, end: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": record.id,
        "modelId": record.model,
        "object": "text_completion",
        "created": int(record.created),
        "choices": [{"index": 0, "text": text, "finish_reason": end["reason"]}],
        "usage": end["usage"],
    }


def require_finished(entry: Entry) -> dict[str, Any]:
    """Return how a request finished (a cancelled one too), or raise what it failed with."""
    end = entry.json()
    if end["outcome"] == Outcome.ERROR:
        raise errors.from_failure(Failure.from_dict(end["error"]))
    return end

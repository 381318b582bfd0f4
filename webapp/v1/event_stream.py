"""A request's stream as server-sent events of the native API."""

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from typing import Any

from flask import Response

from services.errors import RequestFailed, ServerStopping, ServiceError, as_service_error
from services.inference.request_stream import ClientDisconnected, ProcessStopping, RequestStream
from store.token_log.entries import Entry, Kind, Outcome, encode
from store.token_log.outcomes import Failure
from webapp.gunicorn.socket_writer import stream_response
from webapp.http import sse
from webapp.http.access_log import answer
from webapp.schemas.chunks import ChunkEvent, ChunkWriter


def respond(stack: ExitStack, stream: RequestStream) -> Response:
    """Answer with the stream. ``stack`` holds what must be closed at its end.

    The status is decided by what comes first: an error before any text is a plain error
    response. When nothing comes for long, the stream is begun all the same.
    """
    entries = stream.entries()
    first: list[Entry | None] = []
    try:
        for entry in entries:
            if entry is None or entry.kind not in (Kind.OPEN, Kind.RELEASE):
                first.append(entry)
                break
    except ClientDisconnected:
        return Response(status=499)
    except ProcessStopping:
        raise ServerStopping(stream.record.id) from None
    if first[0] is not None and first[0].terminal:
        require_finished(first[0])
    return sse.response(_events(stack.pop_all(), stream, chain(first, entries)))


def require_finished(entry: Entry) -> dict[str, Any]:
    """Return how a request finished (a cancelled one too). Raises ``RequestFailed``."""
    end = entry.json()
    if end["outcome"] == Outcome.ERROR:
        raise RequestFailed(Failure.from_dict(end["error"]))
    return end


def _events(stack: ExitStack, stream: RequestStream, entries: Iterator[Entry | None]) -> Iterator[bytes]:
    line = answer()
    chunks = ChunkWriter.of(stream.record, stream.chunks_before, line.started)

    def render(entry: Entry | None) -> bytes:
        if entry is not None and entry.terminal and entry.json()["outcome"] == Outcome.ERROR:
            line.code = entry.json()["error"]["code"]
        return b"".join(_encode(event) if event else sse.KEEPALIVE for event in chunks.write(entry))

    with stack:
        try:
            yield from stream_response(stream, entries, render, lambda entry: entry.kind == Kind.TEXT)
        except ClientDisconnected:
            return
        except OSError:
            # The socket is broken, or its client does not read: gunicorn must not end the body as if it were whole.
            raise
        except ProcessStopping:
            # No ``[DONE]``: a client that knows the last id goes on elsewhere.
            resume_from = {"id": stream.record.id, "lastEventId": str(stream.position), "resumable": True}
            yield sse.event(encode(resume_from), name="interrupted")
        except Exception as error:
            known: ServiceError = as_service_error(error)
            line.failed(known)
            yield _encode(chunks.error(known.failure))


def _encode(event: ChunkEvent) -> bytes:
    return sse.event(event.data, event.event_id, event.name)

"""Server-sent events on Flask (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from collections.abc import Iterator

from flask import Response, stream_with_context

#: A comment: keeps proxies and clients from thinking that the connection is dead.
KEEPALIVE = b": keep-alive\n\n"


def event(data: bytes, entry_id: str = "", name: str = "") -> bytes:
    """One event. ``data`` must hold no newline (JSON never does)."""
    head = f"event: {name}\n" if name else ""
    head += f"id: {entry_id}\n" if entry_id else ""
    return head.encode() + b"data: " + data + b"\n\n"


def response(chunks: Iterator[bytes], status: int = 200) -> Response:
    """Answer with a stream that no proxy shall buffer."""
    answer = Response(stream_with_context(chunks), status=status, content_type="text/event-stream; charset=utf-8")
    answer.headers["Cache-Control"] = "no-cache"
    answer.headers["X-Accel-Buffering"] = "no"
    return answer

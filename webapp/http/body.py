"""The body of a call: read whole, within bounds of size and time, unpacked, before the call takes a turn anywhere.

A client that sends slowly costs its own thread and nobody else anything. What is too large or too slow is read
to its end (within bounds) all the same: left in the socket, it would be taken for the next request.
"""

import threading
import time
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

from flask import Flask, current_app, g, request
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge

from services.errors import InvalidRequest
from store.token_log.outcomes import Code, Detail, Failure
from webapp.gunicorn.connection import stop_reading
from webapp.gunicorn.internals import BrokenBody
from webapp.http.error_status import HttpError

#: How long a body may take to arrive. Seconds.
READ_SECONDS = 30.0
#: What is thrown away of a body that was refused, so that the connection can be used again. Bytes.
_DISCARDED_BYTES = 32 * 1024 * 1024
_PART = 64 * 1024
#: zlib's window for gzip's and zlib's own head; deflate is found both with and without one.
_GZIP, _ZLIB, _RAW = 31, 15, -15
_ENCODINGS = ("gzip", "deflate")
_MAX_MEMBERS = 16
_STREAMED = "cy_llm_streamed_body"

View = TypeVar("View", bound=Callable[..., Any])


class ReadDeadlines:
    """Ends the reading of bodies that take too long: one thread for all of a process's connections."""

    def __init__(self, seconds: float = READ_SECONDS) -> None:
        self._seconds = seconds
        self._waiting: dict[int, tuple[float, Any]] = {}
        self._late: set[int] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def begin(self) -> int:
        """The current thread begins to read its call's body."""
        connection = stop_reading(request.environ)
        me = threading.get_ident()
        with self._lock:
            self._waiting[me] = (time.monotonic() + self._seconds, connection)
            if self._thread is None:
                # Begun late: a gunicorn worker is forked.
                self._thread = threading.Thread(target=self._run, name="body-deadlines", daemon=True)
                self._thread.start()
        return me

    def end(self, me: int) -> bool:
        """The thread has read it, or failed to; whether it took too long."""
        with self._lock:
            self._waiting.pop(me, None)
            late = me in self._late
            self._late.discard(me)
        return late

    def _run(self) -> None:
        while True:
            time.sleep(0.5)
            now = time.monotonic()
            with self._lock:
                for me, (ends, stop) in list(self._waiting.items()):
                    if now >= ends:
                        self._late.add(me)
                        del self._waiting[me]
                        stop()


deadlines = ReadDeadlines()


def install(app: Flask) -> None:
    """Let :func:`read` find the calls' bodies."""
    app.before_request(read_early)


def streamed(view: View) -> View:
    """Mark a view that reads its body itself, piece by piece: see ``webapp.http.body_stream``."""
    setattr(view, _STREAMED, True)
    return view


def read_early() -> None:
    """Read the body of a call that has one, before its view is called."""
    if request.method in ("POST", "PUT", "PATCH") and request.url_rule is not None:
        view = current_app.view_functions.get(request.endpoint or "")
        if not getattr(view, _STREAMED, False):
            read()


def read() -> bytes:
    """Return the call's body, unpacked. Raises ``InvalidRequest``, ``HttpError``, ``RequestEntityTooLarge``."""
    if "body" not in g:
        g.body = _unpack(_receive())
    found: bytes = g.body
    return found


def _receive() -> bytes:
    me = deadlines.begin()
    try:
        raw = request.get_data(cache=False)
        limit = request.max_content_length
        if limit is not None and len(raw) >= limit and request.environ["wsgi.input"].read(1):
            # Of a body without a length werkzeug returns as much as is allowed, and says nothing of the rest.
            raise RequestEntityTooLarge
    except RequestEntityTooLarge:
        discard()
        raise
    except (ClientDisconnected, BrokenBody, OSError):
        # Where the next request would begin is not known.
        stop_reading(request.environ)()
        raise (too_slow() if deadlines.end(me) else incomplete()) from None
    finally:
        late = deadlines.end(me)
    if late:
        raise too_slow()
    return raw


def incomplete() -> InvalidRequest:
    """The client left in the middle of its body, or framed it wrongly."""
    return InvalidRequest.of("incomplete_body", "", "The body is framed wrongly, or ended before its announced length")


def too_slow() -> HttpError:
    """The body, or a piece of it, took too long."""
    description = f"The body did not arrive within {READ_SECONDS:.0f} seconds"
    failure = Failure(Code.INVALID_REQUEST, description, (Detail("request_timeout", "", description),))
    return HttpError(failure, 408)


def discard() -> None:
    """Read on, past what is too large, or refused: left in the socket it would be taken for the next request."""
    stream, left = request.environ["wsgi.input"], _DISCARDED_BYTES
    ends = time.monotonic() + READ_SECONDS
    try:
        while left > 0 and time.monotonic() < ends:
            part = stream.read(min(_PART, left))
            if not part:
                return
            left -= len(part)
    except (BrokenBody, OSError):
        return
    # More than anybody sends by mistake: the connection is of no more use.
    stop_reading(request.environ)()


def _unpack(raw: bytes) -> bytes:
    encoding = request.headers.get("Content-Encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return raw
    # One alone: packed twice over, a hundred bytes can cost seconds.
    if encoding not in (*_ENCODINGS, "x-gzip"):
        description = f"Content-Encoding may be one of {', '.join(_ENCODINGS)} or identity here"
        failure = Failure(Code.INVALID_REQUEST, description, (Detail("unsupported_encoding", "", description),))
        raise HttpError(failure, 415)
    return _inflate(raw, _window(encoding, raw))


def _window(encoding: str, raw: bytes) -> int:
    if encoding != "deflate":
        return _GZIP
    # RFC 9110 means zlib's format; some clients send it without its head, whose two bytes are a multiple of 31.
    has_head = len(raw) > 1 and raw[0] & 0x0F == 8 and (raw[0] * 256 + raw[1]) % 31 == 0
    return _ZLIB if has_head else _RAW


def _inflate(raw: bytes, window: int) -> bytes:
    limit = request.max_content_length or 0
    found = bytearray()
    try:
        # A gzip file may be several, one behind the other; each copies what follows it.
        for _ in range(_MAX_MEMBERS):
            unpacker = zlib.decompressobj(window)
            found += unpacker.decompress(raw, limit + 1 - len(found))
            if len(found) > limit:
                raise RequestEntityTooLarge
            if not unpacker.eof:
                raise zlib.error("it ends early")
            raw = unpacker.unused_data
            if window != _GZIP or not raw:
                return bytes(found)
        raise zlib.error(f"it has more than {_MAX_MEMBERS} parts")
    except zlib.error as error:
        raise InvalidRequest.of(
            "invalid_encoding", "", f"The body cannot be unpacked as its Content-Encoding says: {error}"
        ) from error

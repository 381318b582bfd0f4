"""A large body, read piece by piece: each piece in time, no more pieces than there may be."""

import time

from flask import request
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge

from store.token_log.outcomes import Code, Detail, Failure
from webapp.gunicorn.connection import stop_reading
from webapp.gunicorn.internals import BrokenBody
from webapp.http.body import READ_SECONDS, deadlines, incomplete, too_slow
from webapp.http.error_status import HttpError

#: A client that sends more slowly is given up: it holds a thread. Bytes a second.
_SLOWEST = 20_000.0


class BodyStream:
    """What :mod:`werkzeug` reads the current call's body from.

    Each read may take as long as a small body as a whole, and all of them together as long as the slowest client that
    is waited for. Reads raise ``HttpError``, ``InvalidRequest``.
    """

    def __init__(self, limit: int) -> None:
        """Raises ``HttpError`` at once where the body is announced to be larger than ``limit`` bytes, or packed."""
        if request.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
            description = "A file is sent as it is here: leave Content-Encoding out"
            detail = Detail("unsupported_encoding", "", description)
            raise HttpError(Failure(Code.INVALID_REQUEST, description, (detail,)), 415)
        self._limit = limit
        self._came = 0
        self._began = time.monotonic()
        # Flask's own bound is for bodies that are read into memory.
        request.max_content_length = limit
        if (request.content_length or 0) > limit:
            raise self.too_large()
        self._stream = request.stream

    def read(self, size: int = -1) -> bytes:
        """Return up to ``size`` bytes; none at the end."""
        me = deadlines.begin()
        try:
            part = self._stream.read(size)
        except RequestEntityTooLarge:
            raise self.too_large() from None
        except (ClientDisconnected, BrokenBody, OSError):
            # Where the next request would begin is not known.
            stop_reading(request.environ)()
            raise (too_slow() if deadlines.end(me) else incomplete()) from None
        finally:
            late = deadlines.end(me)
        if late:
            raise too_slow()
        self._came += len(part)
        if time.monotonic() - self._began > READ_SECONDS + self._came / _SLOWEST:
            stop_reading(request.environ)()
            raise too_slow()
        if self._came > self._limit:
            raise self.too_large()
        return part

    def too_large(self, limit: int = 0) -> HttpError:
        """What a client is told whose file is larger than ``limit`` bytes, or its body than the stream may be."""
        description = f"The file is larger than the {limit or self._limit} bytes allowed"
        return HttpError(
            Failure(Code.INVALID_REQUEST, description, (Detail("file_too_large", "file", description),)), 413
        )

"""A large body, read piece by piece: each piece in time, no more pieces than there may be."""

from flask import request
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge

from store.token_log.outcomes import Code, Detail, Failure
from webapp.gunicorn.connection import stop_reading
from webapp.gunicorn.internals import BrokenBody
from webapp.http.body import deadlines, incomplete, too_slow
from webapp.http.error_status import HttpError


class BodyStream:
    """What :mod:`werkzeug` reads the current call's body from.

    Each read may take as long as a small body as a whole, so a client has to send at a speed of a few kilobytes a
    second at least. Reads raise ``HttpError``, ``InvalidRequest``.
    """

    def __init__(self, limit: int) -> None:
        """Raises ``HttpError`` at once where the body is announced to be larger than ``limit`` bytes, or packed."""
        if request.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
            description = "A file is sent as it is here: leave Content-Encoding out"
            detail = Detail("unsupported_encoding", "", description)
            raise HttpError(Failure(Code.INVALID_REQUEST, description, (detail,)), 415)
        self._limit = limit
        self._came = 0
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
        if self._came > self._limit:
            raise self.too_large()
        return part

    def too_large(self, limit: int = 0) -> HttpError:
        """What a client is told whose file is larger than ``limit`` bytes, or its body than the stream may be."""
        description = f"The file is larger than the {limit or self._limit} bytes allowed"
        return HttpError(
            Failure(Code.INVALID_REQUEST, description, (Detail("file_too_large", "file", description),)), 413
        )

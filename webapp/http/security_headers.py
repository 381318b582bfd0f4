"""Headers that keep browsers and proxies from doing more with an answer than they were asked to."""

from flask import Flask, Response

_HEADERS = {
    # Nothing is guessed: what says that it is JSON is not run.
    "X-Content-Type-Options": "nosniff",
    # An answer belongs to one key; no proxy gives it to another.
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    # No page shows an answer inside itself.
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


def install(app: Flask) -> None:
    """Write the headers on every answer of ``app``; a view's own stay."""
    app.after_request(_write)


def _write(response: Response) -> Response:
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    return response

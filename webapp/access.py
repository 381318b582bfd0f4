"""One log line for every answer, written when its last byte has gone (a stream's at its end)."""

import logging
import time

from flask import Flask, Response, g, request

from store.requests import RequestRecord

log = logging.getLogger(__name__)


def register(app: Flask) -> None:
    """Log every answer of ``app``."""
    app.before_request(_begin)
    app.after_request(_attach)


def note(record: RequestRecord) -> dict[str, str]:
    """Put the request on this answer's log line; return the fields, for other lines."""
    fields = {"request_id": record.id, "model": record.model, **record.metadata}
    g.log_fields = fields
    return fields


def _begin() -> None:
    g.started = time.monotonic()


def _attach(response: Response) -> Response:
    if request.path == "/health" and response.status_code == 200:
        # Load balancers ask every second.
        return response
    principal = g.get("principal")
    fields = {
        "method": request.method,
        "path": request.path,
        "status": response.status_code,
        "key": principal.name if principal else None,
        **g.get("log_fields", {}),
    }
    started = g.started

    def write() -> None:
        duration = round((time.monotonic() - started) * 1000)
        log.info("Answered", extra={**fields, "duration_ms": duration})

    response.call_on_close(write)
    return response

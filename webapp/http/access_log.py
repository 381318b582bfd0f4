"""One log line for every HTTP answer, written when its last byte has gone (a stream's at its end)."""

from contextlib import AbstractContextManager

from flask import Flask, Response, g, request

import logs
from services.request_log import AnswerRecord
from store.redis.request_records import RequestRecord


def register(app: Flask) -> None:
    """Log every answer of ``app``."""
    app.before_request(_begin)
    app.after_request(_write_at_end)


def answer() -> AnswerRecord:
    """The line of the current call."""
    found: AnswerRecord = g.answer
    return found


def bind_log_fields(record: RequestRecord) -> AbstractContextManager[None]:
    """Put the request on this answer's line, and on all that are written inside the ``with`` block."""
    fields = record.log_fields
    g.answer.fields |= fields
    return logs.bind(**fields)


def _begin() -> None:
    where = {"method": request.method, "path": request.path}
    g.answer = AnswerRecord("http", f"{request.method} {request.path}", fields=where)


def _write_at_end(response: Response) -> Response:
    if request.path in ("/health", "/ready") and response.status_code == 200:
        # Load balancers ask every second.
        return response
    line = answer()
    line.principal = g.get("principal")
    line.status = response.status_code
    line.route = f"{request.method} {request.url_rule.rule}" if request.url_rule else "other"
    response.call_on_close(line.write)
    return response

"""``/api/v1/inference/ws``: many requests over one WebSocket, in JSON frames.

From the client, each with ``type``:

- ``auth``: ``apiKey``. Must be the first frame where no header carries the key (browsers).
- ``start``: ``request`` (a body of ``/inference``), ``ref`` (any word of the client's, returned
  with ``accepted`` or ``error``), and if wanted ``idempotencyKey``.
- ``resume``: ``id``, and ``lastEventId``.
- ``cancel``: ``id``. Ends it for good; its last chunk says so.
- ``watch``: ``jobId``, and if wanted ``lastEventId``: what happens to a training job, as it happens.
- ``ping``: answered with ``pong``.

To the client: ``ready``, ``accepted`` (``ref``, ``id``), ``chunk`` (the chunk object of SSE, with
``eventId``), ``done`` (``id``), ``interrupted`` (``id``, ``lastEventId``), ``job`` (``event``, ``eventId``,
and the event as SSE has it; ``done`` with ``jobId`` after the last), ``error`` (``error``, with
``id`` or ``ref``), ``pong``. Close codes: 4401 no valid key, 4403 the key lacks the scope,
4408 no ``auth`` frame in time, 1012 this server is being restarted, 1013 try again later.
"""

from typing import Any

from flask import request
from flask_sock import Sock
from simple_websocket import Server

from services.errors import PermissionDenied, ServiceError, Unauthenticated, as_service_error
from services.request_log import AnswerRecord
from services.trace_parent import trace_id_of
from store.principal import Principal, Scope
from webapp.http.authentication import authenticate
from webapp.http.current import services
from webapp.schemas.loading import json_object
from webapp.v1.websocket_connection import WebSocketConnection

sock = Sock()

CLOSE_UNAUTHORIZED = 4401
CLOSE_FORBIDDEN = 4403
CLOSE_AUTH_TIMEOUT = 4408
CLOSE_TRY_AGAIN = 1013
#: How long a client may take to send its ``auth`` frame. Seconds.
AUTH_TIMEOUT_SECONDS = 10.0


@sock.route("/api/v1/inference/ws")
def websocket(ws: Server) -> None:
    """Serve one client until it leaves."""
    line = AnswerRecord("websocket", request.path)
    try:
        principal = _authenticate(ws)
        if principal is None:
            ws.close(CLOSE_AUTH_TIMEOUT, "send an auth frame first")
            line.code = Unauthenticated.code
            line.write()
            return
        line.principal = principal
        services().access.require_scope(principal, Scope.INFERENCE)
    except Exception as error:
        known = as_service_error(error)
        line.failed(known)
        line.write()
        ws.close(_close_code(known), str(known))
        return
    trace_id = trace_id_of(request.headers.get("traceparent"))
    connection = WebSocketConnection(services(), ws, principal, trace_id)
    try:
        connection.serve()
    finally:
        connection.close()


def _authenticate(ws: Server) -> Principal | None:
    """Return whose socket it is; None when no ``auth`` frame came in time. Raises ``Unauthenticated``."""
    try:
        return authenticate()
    except Unauthenticated:
        frame = ws.receive(timeout=AUTH_TIMEOUT_SECONDS)
        return None if frame is None else services().access.authenticate(_key_of(frame))


def _key_of(frame: Any) -> str | None:
    try:
        message = json_object(frame, "A frame")
    except ServiceError:
        return None
    key = message.get("apiKey") if message.get("type") == "auth" else None
    return key if isinstance(key, str) and key else None


def _close_code(error: ServiceError) -> int:
    match error:
        case Unauthenticated():
            return CLOSE_UNAUTHORIZED
        case PermissionDenied():
            return CLOSE_FORBIDDEN
        case _:
            return CLOSE_TRY_AGAIN

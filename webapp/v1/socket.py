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
and the event as SSE has it; ``done`` with ``jobId`` behind the last), ``error`` (``error``, with
``id`` or ``ref``), ``pong``. Close codes: 4401 no valid key, 4403 the key lacks the right,
4408 no ``auth`` frame in time, 1012 this server is being restarted.
"""

import json
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flask import current_app, g
from flask_sock import Sock
from marshmallow import ValidationError
from redis.exceptions import RedisError
from simple_websocket import ConnectionClosed, Server
from sqlalchemy.exc import SQLAlchemyError

import logs
from store.entries import EntryId
from store.keys import Principal, Right
from store.outcomes import Detail
from store.requests import RequestRecord
from webapp import auth, errors, generation
from webapp.bodies import details_of, instance
from webapp.errors import ApiError
from webapp.generation import Following, ProcessStopping
from webapp.services import Services, services
from webapp.v1 import admission, job_events, training
from webapp.v1.chunks import DONE, ChunkWriter
from webapp.v1.requests import find, last_event_id
from webapp.v1.schemas import InferenceSchema

log = logging.getLogger(__name__)

sock = Sock()

CLOSE_UNAUTHORIZED = 4401
CLOSE_FORBIDDEN = 4403
CLOSE_AUTH_TIMEOUT = 4408
CLOSE_RESTART = 1012
#: How long a client may take to send its ``auth`` frame. Seconds.
AUTH_TIMEOUT_SECONDS = 10.0
#: Requests that run over one socket at once.
MAX_REQUESTS = 64
#: Frames that wait for a slow client; then the requests wait too, and read their logs later.
_MAX_FRAMES = 64
#: How often the reader looks whether the process is being stopped. Seconds.
_LOOK_SECONDS = 1.0


@sock.route("/api/v1/inference/ws")
def socket(ws: Server) -> None:
    """Serve one client until it leaves."""
    own = services()
    principal = _authenticate(ws)
    if principal is None:
        return
    g.principal = principal
    connection = Connection(own, ws, principal)
    try:
        connection.serve()
    finally:
        connection.close()


def _authenticate(ws: Server) -> Principal | None:
    """Return whose socket it is, or close it and say why."""
    try:
        principal = auth.authenticate()
    except ApiError:
        frame = ws.receive(timeout=AUTH_TIMEOUT_SECONDS)
        if frame is None:
            ws.close(CLOSE_AUTH_TIMEOUT, "send an auth frame first")
            return None
        key = _key_of(frame)
        found = services().keys.authenticate(key) if key else None
        if found is None:
            ws.close(CLOSE_UNAUTHORIZED, "a valid API key is required")
            return None
        principal = found
    if not principal.may(Right.INFERENCE):
        ws.close(CLOSE_FORBIDDEN, f"this API key does not have the right '{Right.INFERENCE.value}'")
        return None
    return principal


def _key_of(frame: Any) -> str | None:
    message = _parse(frame) or {}
    key = message.get("apiKey") if message.get("type") == "auth" else None
    return key if isinstance(key, str) and key else None


def _parse(frame: Any) -> dict[str, Any] | None:
    """Return a frame's JSON object; None for what is none, or holds text that cannot be encoded."""
    try:
        message = json.loads(frame)
        json.dumps(message, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


class Connection:
    """One socket: a reader (the request's thread), one writer, and a thread for each request."""

    def __init__(self, own: Services, ws: Server, principal: Principal) -> None:
        self._own = own
        self._ws = ws
        self._principal = principal
        self._app = current_app._get_current_object()  # type: ignore[attr-defined]
        self._frames: queue.Queue[bytes | None] = queue.Queue(_MAX_FRAMES)
        self._gone = threading.Event()
        self._running: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._writer = threading.Thread(target=self._write, name="ws-writer", daemon=True)

    def serve(self) -> None:
        """Read frames until the client leaves or the process stops."""
        self._writer.start()
        self._send("ready")
        while not self._gone.is_set():
            frame = self._ws.receive(timeout=_LOOK_SECONDS)
            if frame is not None:
                self._handle(frame)
            elif self._own.lifecycle.stopping:
                self._finish_for_restart()
                return

    def close(self) -> None:
        """The client is gone: what it alone follows is let go."""
        self._gone.set()
        self._put(None)
        self._writer.join(timeout=5)
        for thread in list(self._running):
            thread.join(timeout=5)

    def _finish_for_restart(self) -> None:
        for thread in list(self._running):
            thread.join(timeout=5)
        self._put(None)
        self._writer.join(timeout=5)
        self._ws.close(CLOSE_RESTART, "this server is being restarted; resume your requests")

    # Reading.

    def _handle(self, frame: Any) -> None:
        message = _parse(frame)
        if message is None:
            self._error(errors.invalid([Detail("invalid_json", "", "A frame must be a JSON object")]))
            return
        actions: dict[str, Callable[[dict[str, Any]], None]] = {
            "start": self._start,
            "resume": self._resume,
            "cancel": self._cancel,
            "watch": self._watch,
            "ping": lambda _: self._send("pong"),
        }
        action = actions.get(str(message.get("type")))
        tags = {name: message[name] for name in ("ref", "id", "jobId") if isinstance(message.get(name), str)}
        try:
            if action is None:
                raise errors.invalid([Detail("invalid_value", "type", f"'type' must be one of {', '.join(actions)}")])
            action(message)
        except ApiError as error:
            self._error(error, **tags)
        except RedisError as error:
            log.error("Redis cannot be used: %s", error)
            self._error(errors.redis_unavailable(), **tags)

    def _start(self, message: dict[str, Any]) -> None:
        self._require_room()
        request = message.get("request")
        try:
            body = instance(InferenceSchema).load(request if isinstance(request, dict) else {})
        except ValidationError as error:
            raise errors.invalid(details_of(error, "request")) from error
        with_metadata = bool(body["metadata"])
        admitted = admission.accept(self._own, body, with_metadata, str(message.get("idempotencyKey") or ""))
        self._send("accepted", ref=message.get("ref"), id=admitted.record.id)
        self._run(admitted.record, lambda: admitted.follow(self._own))

    def _resume(self, message: dict[str, Any]) -> None:
        self._require_room()
        record = find(self._own, str(message.get("id")))
        after = last_event_id(str(message.get("lastEventId") or ""))
        self._send("accepted", ref=message.get("ref"), id=record.id)
        self._run(record, lambda: self._attach(record, after))

    @contextmanager
    def _attach(self, record: RequestRecord, after: EntryId) -> Iterator[Following]:
        with (
            self._own.limiter.hold_stream(record.owner, record.id),
            generation.attach(self._own, record, after) as following,
        ):
            yield following

    def _require_room(self) -> None:
        if len(self._running) >= MAX_REQUESTS:
            raise errors.too_many_streams(MAX_REQUESTS)

    def _cancel(self, message: dict[str, Any]) -> None:
        generation.cancel(self._own, find(self._own, str(message.get("id"))))

    def _watch(self, message: dict[str, Any]) -> None:
        self._require_room()
        if not self._principal.may(Right.TRAINING):
            raise errors.forbidden(Right.TRAINING.value)
        job_id = training.find(str(message.get("jobId"))).id
        after = training.event_number(str(message.get("lastEventId") or ""))
        self._spawn(f"ws-{job_id}", lambda: self._follow_job(job_id, after))

    # One thread for each request.

    def _spawn(self, name: str, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            finally:
                with self._lock:
                    self._running.discard(threading.current_thread())

        thread = threading.Thread(target=run, name=name, daemon=True)
        with self._lock:
            self._running.add(thread)
        thread.start()

    def _follow_job(self, job_id: str, after: int) -> None:
        try:
            for event in job_events.follow(self._own, job_id, after, self._gone.is_set):
                if event is not None:
                    own = {"event": event.kind, "eventId": str(event.id)}
                    self._send("job", **own, **job_events.describe_event(event))
                    if job_events.is_end(event):
                        self._send("done", jobId=job_id)
        except SQLAlchemyError as error:
            log.error("The database cannot be used: %s", error.__class__.__name__)
            self._error(errors.database_unavailable(), jobId=job_id)

    def _run(self, record: RequestRecord, follow: Callable[[], Any]) -> None:
        self._spawn(f"ws-{record.id}", lambda: self._relay(record, follow))

    def _relay(self, record: RequestRecord, follow: Callable[[], Any]) -> None:
        fields = {"request_id": record.id, "model": record.model, **record.metadata}
        with self._app.app_context(), logs.bind(**fields):
            try:
                with follow() as following:
                    self._follow(record, following)
            except ApiError as error:
                self._error(error, id=record.id)
            except RedisError as error:
                log.error("Redis cannot be used: %s", error)
                self._error(errors.redis_unavailable(), id=record.id)
            finally:
                log.info("WebSocket request left", extra={"key": self._principal.name})

    def _follow(self, record: RequestRecord, following: Following) -> None:
        chunks = ChunkWriter.of(record, following.offset)
        try:
            for entry in following.entries(self._gone.is_set):
                for piece in chunks.write(entry):
                    if piece is DONE:
                        self._send("done", id=record.id)
                    elif piece is not None:
                        own = {"type": piece.name or "chunk", "eventId": piece.event_id}
                        self._put(json.dumps({**own, **json.loads(piece.data)}, ensure_ascii=False).encode())
                if self._gone.is_set():
                    return
        except generation.ClientGone:
            return
        except ProcessStopping:
            self._send("interrupted", id=record.id, lastEventId=str(following.position), resumable=True)

    # Writing.

    def _error(self, error: ApiError, **tags: str) -> None:
        more = {} if error.retry_after is None else {"retryAfter": error.retry_after}
        self._send("error", **tags, status=error.status, error=error.failure.to_dict(), **more)

    def _send(self, kind: str, **values: Any) -> None:
        self._put(json.dumps({"type": kind, **values}, ensure_ascii=False).encode())

    def _put(self, frame: bytes | None) -> None:
        """Queue a frame; waits for a slow client, but not for one that has left."""
        while True:
            try:
                self._frames.put(frame, timeout=_LOOK_SECONDS)
                return
            except queue.Full:
                if self._gone.is_set():
                    return

    def _write(self) -> None:
        while True:
            frame = self._frames.get()
            if frame is None:
                return
            try:
                self._ws.send(frame.decode())
            except (ConnectionClosed, OSError):
                self._gone.set()
                return

"""One WebSocket: its frames, the requests that run over it, and its one writer."""

import logging
import queue
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from simple_websocket import ConnectionClosed, Server

import logs
from services.container import Services
from services.context import RequestContext
from services.errors import InvalidRequest, ServiceError, as_service_error
from services.inference.request_stream import ClientDisconnected, ProcessStopping, RequestStream
from services.inference.service import parse_event_id
from services.limit_errors import TooManyStreams
from services.request_log import AnswerRecord
from services.training.events import FollowingStopped
from services.training.service import parse_event_number
from store.principal import Principal, Scope
from store.redis.request_records import RequestRecord
from store.sql.tables import TrainingJob
from store.token_log.entries import encode
from store.token_log.outcomes import Failure
from webapp.http.error_status import status_of
from webapp.schemas.chunks import DONE, ChunkEvent, ChunkWriter
from webapp.schemas.inference import InferenceSchema, to_request
from webapp.schemas.loading import json_object, load
from webapp.v1.job_view import describe_event

log = logging.getLogger(__name__)

CLOSE_RESTART = 1012
#: Requests that run over one socket at once.
MAX_REQUESTS = 64
#: Frames that wait for a slow client; then the requests wait too, and read their logs later.
_MAX_FRAMES = 64
#: How often the reader looks whether the process is being stopped. Seconds.
_POLL_SECONDS = 1.0
#: How long the threads of a socket may take to end. Seconds.
_JOIN_SECONDS = 5.0
_PATH = "/api/v1/inference/ws"

_Frame = dict[str, Any]


class WebSocketConnection:
    """A reader (the call's thread), one writer, and a thread for each request."""

    def __init__(self, services: Services, ws: Server, principal: Principal, trace_id: str = "") -> None:
        self._trace_id = trace_id
        self._services = services
        self._ws = ws
        self._principal = principal
        self._frames: queue.Queue[bytes | None] = queue.Queue(_MAX_FRAMES)
        self._disconnected = threading.Event()
        self._running: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._writer = threading.Thread(target=self._write, name="ws-writer", daemon=True)
        self._actions: dict[str, Callable[[_Frame, AnswerRecord], None]] = {
            "start": self._start,
            "resume": self._resume,
            "cancel": self._cancel,
            "watch": self._watch,
            "ping": lambda _frame, _line: self._send("pong"),
        }

    def serve(self) -> None:
        """Read frames until the client leaves or the process stops."""
        self._writer.start()
        self._send("ready")
        while not self._disconnected.is_set():
            frame = self._ws.receive(timeout=_POLL_SECONDS)
            if frame is not None:
                self._handle(frame)
            elif self._services.lifecycle.stopping:
                self._join()
                self._put(None)
                self._writer.join(timeout=_JOIN_SECONDS)
                self._ws.close(CLOSE_RESTART, "this server is being restarted; resume your requests")
                return

    def close(self) -> None:
        """The client is gone: what it alone follows is released."""
        self._disconnected.set()
        self._put(None)
        self._writer.join(timeout=_JOIN_SECONDS)
        self._join()

    def _join(self) -> None:
        for thread in list(self._running):
            thread.join(timeout=_JOIN_SECONDS)

    # Reading.

    def _handle(self, raw: Any) -> None:
        line, tags = self._line("frame"), dict[str, str]()
        try:
            frame = json_object(raw, "A frame")
            frame = {name: value for name, value in frame.items() if value is not None}
            tags = {name: frame[name] for name in ("ref", "id", "jobId") if isinstance(frame.get(name), str)}
            action = self._actions.get(str(frame.get("type")))
            if action is None:
                allowed = ", ".join(self._actions)
                raise InvalidRequest.of("invalid_value", "type", f"'type' must be one of {allowed}")
            line = self._line(frame["type"])
            action(frame, line)
        except Exception as error:
            self._fail(line, as_service_error(error), **tags)
            line.write()

    def _start(self, frame: _Frame, line: AnswerRecord) -> None:
        self._require_room()
        given = frame.get("request")
        body = load(InferenceSchema, given if isinstance(given, dict) else {}, "request")
        call = self._context(str(frame.get("idempotencyKey") or ""))
        submission = self._services.inference.admit(call, to_request(body, with_metadata=bool(body["metadata"])))
        loading = {"modelLoading": True} if submission.route and submission.route.loads_first else {}
        self._send("accepted", ref=frame.get("ref"), id=submission.record.id, **loading)
        self._run(submission.record, line, self._services.inference.open(call, submission))

    def _resume(self, frame: _Frame, line: AnswerRecord) -> None:
        self._require_room()
        inference = self._services.inference
        record = inference.find(self._principal, str(frame.get("id")))
        after = parse_event_id(str(frame.get("lastEventId") or ""))
        self._send("accepted", ref=frame.get("ref"), id=record.id)
        self._run(record, line, inference.resume(self._context(), record, after))

    def _cancel(self, frame: _Frame, line: AnswerRecord) -> None:
        inference = self._services.inference
        inference.cancel(inference.find(self._principal, str(frame.get("id"))))
        line.write()

    def _watch(self, frame: _Frame, line: AnswerRecord) -> None:
        self._require_room()
        self._services.access.require_scope(self._services.access.current(self._principal), Scope.TRAINING)
        job = self._services.training.find(self._principal, str(frame.get("jobId")))
        after = parse_event_number(str(frame.get("lastEventId") or ""))
        self._spawn(f"ws-{job.id}", line, {"jobId": job.id}, lambda: self._follow_job(job, after))

    def _require_room(self) -> None:
        if len(self._running) >= MAX_REQUESTS:
            raise TooManyStreams("One socket", MAX_REQUESTS)

    def _context(self, idempotency_key: str = "") -> RequestContext:
        return RequestContext(
            self._principal,
            _PATH,
            idempotency_key=idempotency_key,
            trace_id=self._trace_id,
            disconnected=self._disconnected.is_set,
        )

    def _line(self, kind: str) -> AnswerRecord:
        return AnswerRecord("websocket", f"{_PATH} {kind}", principal=self._principal)

    # One thread for each request.

    def _run(self, record: RequestRecord, line: AnswerRecord, opened: AbstractContextManager[RequestStream]) -> None:
        line.fields = record.log_fields

        def relay() -> None:
            with logs.bind(**record.log_fields), opened as stream:
                self._relay(stream, line)

        self._spawn(f"ws-{record.id}", line, {"id": record.id}, relay)

    def _spawn(self, name: str, line: AnswerRecord, tags: dict[str, str], work: Callable[[], None]) -> None:
        """Do ``work`` in a thread of its own; what it raises goes to the client."""

        def run() -> None:
            try:
                work()
            except (ClientDisconnected, FollowingStopped):
                log.debug("The client of a socket has left, or this process is being stopped")
            except Exception as error:
                self._fail(line, as_service_error(error), **tags)
            finally:
                line.write()
                with self._lock:
                    self._running.discard(threading.current_thread())

        thread = threading.Thread(target=run, name=name, daemon=True)
        with self._lock:
            self._running.add(thread)
        thread.start()

    def _relay(self, stream: RequestStream, line: AnswerRecord) -> None:
        chunks = ChunkWriter.of(stream.record, stream.chunks_before, line.started)
        try:
            for entry in stream.entries():
                for event in chunks.write(entry):
                    if event is not None:
                        self._send_chunk(stream.record.id, event, line)
                if self._disconnected.is_set():
                    return
        except ProcessStopping:
            self._send("interrupted", id=stream.record.id, lastEventId=str(stream.position), resumable=True)

    def _send_chunk(self, request_id: str, event: ChunkEvent, line: AnswerRecord) -> None:
        if event is DONE:
            self._send("done", id=request_id)
            return
        if event.name == "error":
            line.code = Failure.from_dict(event.json()["error"]).code
        self._put(encode({"type": event.name or "chunk", "eventId": event.event_id, **event.json()}))

    def _follow_job(self, job: TrainingJob, after: int) -> None:
        for event in self._services.training.follow(self._context(), job, after):
            if event is not None:
                self._send("job", event=event.kind, eventId=str(event.id), **describe_event(event))
        self._send("done", jobId=job.id)

    # Writing.

    def _fail(self, line: AnswerRecord, error: ServiceError, **tags: str) -> None:
        line.failed(error)
        more = {} if error.retry_after is None else {"retryAfter": error.retry_after}
        self._send("error", **tags, status=status_of(error), error=error.failure.to_dict(), **more)

    def _send(self, kind: str, **values: Any) -> None:
        self._put(encode({"type": kind, **values}))

    def _put(self, frame: bytes | None) -> None:
        """Queue a frame; waits for a slow client, but not for one that has left."""
        while True:
            try:
                self._frames.put(frame, timeout=_POLL_SECONDS)
                return
            except queue.Full:
                if self._disconnected.is_set():
                    return

    def _write(self) -> None:
        while True:
            frame = self._frames.get()
            if frame is None:
                return
            try:
                self._ws.send(frame.decode())
            except (ConnectionClosed, OSError):
                self._disconnected.set()
                return

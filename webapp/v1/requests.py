"""``/api/v1/inference/{id}``: look at a request, follow it again, cancel it."""

from contextlib import ExitStack
from typing import Any

from flask import Blueprint, Response, jsonify, request

from services.inference.service import parse_event_id
from store.redis.request_records import RequestRecord
from store.token_log.entries import Kind
from store.token_log.log import LogSnapshot
from webapp.http.access_log import bind_log_fields
from webapp.http.current import context, principal, services
from webapp.v1.event_stream import respond

bp = Blueprint("requests", __name__, url_prefix="/api/v1/inference")


@bp.get("/<request_id>")
def show(request_id: str) -> Response:
    """The state of a request and its text so far."""
    inference = services().inference
    record = inference.find(principal(), request_id)
    return jsonify(_state(record, inference.snapshot(record)))


@bp.get("/<request_id>/stream")
def resume(request_id: str) -> Response:
    """Follow a request from after ``Last-Event-ID``; a request that was released goes on."""
    inference = services().inference
    record = inference.find(principal(), request_id)
    after = parse_event_id(last_event_id())
    with ExitStack() as stack:
        stack.enter_context(bind_log_fields(record))
        return respond(stack, stack.enter_context(inference.resume(context(), record, after)))


@bp.post("/<request_id>/cancel")
def cancel(request_id: str) -> Response:
    """End a request. Ending one that has ended changes nothing."""
    inference = services().inference
    record = inference.find(principal(), request_id)
    with bind_log_fields(record):
        inference.cancel(record)
        return jsonify(_state(record, inference.snapshot(record)))


def last_event_id() -> str:
    """Where the client wants to go on from; a browser's ``EventSource`` cannot set the header at first."""
    return request.headers.get("Last-Event-ID") or request.args.get("lastEventId") or ""


def _state(record: RequestRecord, snapshot: LogSnapshot) -> dict[str, Any]:
    last = snapshot.last
    end = last.json() if last is not None and last.terminal else {}
    usage = last.json().get("usage") if last is not None and last.kind in (Kind.END, Kind.RELEASE) else None
    body: dict[str, Any] = {
        "id": record.id,
        "modelId": record.model,
        "object": "text_completion",
        "created": int(record.created),
        "state": _word(snapshot, end),
        "choices": [{"index": 0, "text": snapshot.text, "finish_reason": end.get("reason")}],
        "usage": usage,
        "lastEventId": str(last.id) if last is not None else None,
    }
    if "error" in end:
        body["error"] = end["error"]
    return body


def _word(snapshot: LogSnapshot, end: dict[str, Any]) -> str:
    if end:
        return str(end["outcome"])
    if snapshot.last is None:
        return "queued"
    return "paused" if snapshot.last.kind == Kind.RELEASE else "running"

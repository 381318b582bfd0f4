"""``/api/v1/inference/{id}``: look at a request, follow it again, cancel it."""

from contextlib import ExitStack
from typing import Any

from flask import Blueprint, Response, jsonify, request

import logs
from store import streams
from store.entries import START, EntryId, Kind
from store.requests import RequestRecord
from store.streams import Delivered
from webapp import access, auth, errors, generation
from webapp.services import Services, services
from webapp.v1.inference import respond

bp = Blueprint("requests", __name__, url_prefix="/api/v1/inference")


@bp.get("/<request_id>")
def show(request_id: str) -> Response:
    """The state of a request and its text so far."""
    record = find(services(), request_id)
    return jsonify(_state(record, streams.delivered(services().redis, record.id)))


@bp.get("/<request_id>/stream")
def resume(request_id: str) -> Response:
    """Follow a request from behind ``Last-Event-ID``; a request that was let go goes on."""
    own = services()
    record = find(own, request_id)
    after = last_event_id(request.headers.get("Last-Event-ID") or request.args.get("lastEventId") or "")
    with ExitStack() as stack:
        stack.enter_context(logs.bind(**access.note(record)))
        stack.enter_context(own.limiter.hold_stream(record.owner, record.id))
        following = stack.enter_context(generation.attach(own, record, after))
        return respond(own, stack, record, following)


@bp.post("/<request_id>/cancel")
def cancel(request_id: str) -> Response:
    """End a request. Ending one that has ended changes nothing."""
    own = services()
    record = find(own, request_id)
    with logs.bind(**access.note(record)):
        generation.cancel(own, record)
        found = streams.delivered(own.redis, record.id)
    return jsonify(_state(record, found))


def find(own: Services, request_id: str) -> RequestRecord:
    """Return a native request of the caller's key. Raises ``ApiError`` (404) for any other."""
    record = own.requests.load(request_id)
    if record is None or record.owner != auth.principal().id or record.kind != RequestRecord.GENERATE:
        raise errors.request_not_found(request_id)
    return record


def last_event_id(text: str) -> EntryId:
    """Parse the id of an event. Raises ``ApiError`` (400)."""
    if not text:
        return START
    try:
        return EntryId.parse(text.strip())
    except ValueError:
        raise errors.unknown_event_id() from None


def _state(record: RequestRecord, found: Delivered) -> dict[str, Any]:
    last = found.last
    end = last.json() if last is not None and last.terminal else {}
    usage = last.json().get("usage") if last is not None and last.kind in (Kind.END, Kind.RELEASE) else None
    body: dict[str, Any] = {
        "id": record.id,
        "modelId": record.model,
        "object": "text_completion",
        "created": int(record.created),
        "state": _word(found, end),
        "choices": [{"index": 0, "text": found.text, "finish_reason": end.get("reason")}],
        "usage": usage,
        "lastEventId": str(last.id) if last is not None else None,
    }
    if "error" in end:
        body["error"] = end["error"]
    return body


def _word(found: Delivered, end: dict[str, Any]) -> str:
    if end:
        return str(end["outcome"])
    if found.last is None:
        return "queued"
    return "paused" if found.last.kind == Kind.RELEASE else "running"

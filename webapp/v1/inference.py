"""``/api/v1/inference``: one answer, or a stream of server-sent events."""

from contextlib import ExitStack
from typing import Any

from flask import Blueprint, Response, jsonify

from services.errors import ServerStopping
from services.inference.performance import Performance
from services.inference.request_stream import ClientDisconnected, ProcessStopping
from store.redis.request_records import RequestRecord
from store.token_log.entries import Kind
from webapp.gunicorn.admission_gate import serialized
from webapp.http.access_log import answer, bind_log_fields
from webapp.http.current import context, services
from webapp.http.parsing import parse_body
from webapp.schemas.inference import InferenceSchema, to_request
from webapp.v1.event_stream import require_finished, respond

bp = Blueprint("inference", __name__, url_prefix="/api/v1")


@bp.post("/inference")
@serialized
def infer() -> Response:
    """Generate and answer with the whole text."""
    inference, call = services().inference, context()
    submission = inference.admit(call, to_request(parse_body(InferenceSchema), with_metadata=False))
    record = submission.record
    with bind_log_fields(record), inference.open(call, submission) as stream:
        texts: list[str] = []
        performance = Performance(answer().started, record.trace_id)
        try:
            for entry in stream.entries():
                if entry is not None and entry.kind == Kind.TEXT:
                    texts.append(entry.json()["text"])
                    performance.observe(entry)
                elif entry is not None and entry.terminal:
                    found = _answer(record, "".join(texts), require_finished(entry))
                    if record.payload.get("performance"):
                        found["performance"] = performance.report()
                    return jsonify(found)
        except ClientDisconnected:
            return Response(status=499)
        except ProcessStopping:
            raise ServerStopping(record.id) from None
    raise AssertionError("a log always ends with a terminal entry")


@bp.post("/inference/stream")
@serialized
def stream() -> Response:
    """Generate and answer with chunks as they come."""
    return _stream(with_metadata=False)


@bp.post("/inference/streamWithMetadata")
@serialized
def stream_with_metadata() -> Response:
    """As ``/inference/stream``; every chunk carries the request's metadata."""
    return _stream(with_metadata=True)


def _stream(with_metadata: bool) -> Response:
    inference, call = services().inference, context()
    submission = inference.admit(call, to_request(parse_body(InferenceSchema), with_metadata))
    with ExitStack() as stack:
        stack.enter_context(bind_log_fields(submission.record))
        return respond(stack, stack.enter_context(inference.open(call, submission)))


def _answer(record: RequestRecord, text: str, end: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": record.id,
        "modelId": record.model,
        "object": "text_completion",
        "created": int(record.created),
        "choices": [{"index": 0, "text": text, "finish_reason": end["reason"]}],
        "usage": end["usage"],
    }

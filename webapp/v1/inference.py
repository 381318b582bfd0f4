"""``/api/v1/inference``: one answer, or a stream of server-sent events."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from flask import Blueprint, Response, jsonify

import logs
from engines.types import Sampling
from store.entries import Entry, Kind, Outcome
from store.outcomes import Detail, Failure
from store.requests import RequestRecord, new_request_id
from webapp import access, auth, errors, generation, sse
from webapp.bodies import parse
from webapp.services import Services, services
from webapp.v1.chunks import ChunkWriter
from webapp.v1.schemas import InferenceSchema

bp = Blueprint("inference", __name__, url_prefix="/api/v1")


@bp.post("/inference")
def infer() -> Response:
    """Generate and answer with the whole text."""
    own = services()
    record, queue = accept(own, parse(InferenceSchema()))
    with logs.bind(**access.note(record)), generation.begin(own, record, queue) as follower:
        texts: list[str] = []
        for entry in generation.follow(own, record, follower):
            if entry is None:
                continue
            if entry.kind == Kind.TEXT:
                texts.append(entry.json()["t"])
            elif entry.terminal:
                return jsonify(_answer(record, "".join(texts), _require_finished(entry)))
    raise AssertionError("a log always ends with a terminal entry")


@bp.post("/inference/stream")
def stream() -> Response:
    """Generate and answer with chunks as they come."""
    return _stream(with_metadata=False)


@bp.post("/inference/streamWithMetadata")
def stream_with_metadata() -> Response:
    """As ``/inference/stream``; every chunk carries the request's metadata."""
    return _stream(with_metadata=True)


def accept(own: Services, body: dict[str, Any]) -> tuple[RequestRecord, str]:
    """Turn a checked body into a record and the queue it goes to. Raises ``ApiError``."""
    spec = generation.resolve(own, body["modelId"], "modelId")
    fleet, queue = generation.require_worker(own, spec)
    parameters = body["generation"]
    _check_room(parameters.get("maxNewTokens"), (fleet.engine_info(spec.id) or {}).get("max_model_len"))
    sampling = Sampling(
        max_new_tokens=parameters.get("maxNewTokens"),
        temperature=parameters["temperature"],
        top_p=parameters["topP"],
        repetition_penalty=parameters["repetitionPenalty"],
    )
    record = RequestRecord(
        id=new_request_id(),
        kind=RequestRecord.GENERATE,
        model=spec.id,
        owner=auth.principal().id,
        deadline=time.time() + own.settings.request_timeout,
        payload={"prompt": body["prompt"], "adapter": body.get("adapter"), "sampling": vars(sampling)},
        metadata=body["metadata"],
    )
    return record, queue


def _check_room(wanted: int | None, context: int | None) -> None:
    """Refuse here what no prompt could leave room for; the worker knows the prompt's length."""
    if wanted is not None and context and wanted >= context:
        description = f"{wanted} is too large: the model's context holds {context} tokens, the prompt included"
        raise errors.invalid([Detail("out_of_range", "generation.maxNewTokens", description)])


def _answer(record: RequestRecord, text: str, end: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": record.id,
        "modelId": record.model,
        "object": "text_completion",
        "created": int(record.created),
        "choices": [{"index": 0, "text": text, "finish_reason": end["reason"]}],
        "usage": end["usage"],
    }


def _require_finished(entry: Entry) -> dict[str, Any]:
    """Return how a request finished, or raise what it failed with."""
    end = entry.json()
    if end["outcome"] != Outcome.FINISHED:
        raise errors.from_failure(Failure.from_dict(end["error"]))
    return end


def _stream(with_metadata: bool) -> Response:
    own = services()
    body = parse(InferenceSchema())
    record, queue = accept(own, body)
    metadata = {"traceId": record.id, **record.metadata} if with_metadata else None
    with ExitStack() as stack:
        stack.enter_context(logs.bind(**access.note(record)))
        follower = stack.enter_context(generation.begin(own, record, queue))
        entries = generation.follow(own, record, follower)
        # The answer's status is decided by what comes first: an error before any text
        # is a plain error response.
        waiting: list[Entry | None] = []
        for entry in entries:
            if entry is None or entry.kind != Kind.OPEN:
                waiting.append(entry)
                break
        if waiting[0] is not None and waiting[0].terminal:
            _require_finished(waiting[0])
        return sse.response(_events(stack.pop_all(), ChunkWriter(record.id, metadata), waiting, entries))


def _events(
    stack: ExitStack, chunks: ChunkWriter, waiting: list[Entry | None], entries: Iterator[Entry | None]
) -> Iterator[bytes]:
    with stack:
        for source in (iter(waiting), entries):
            for entry in source:
                yield from chunks.write(entry)

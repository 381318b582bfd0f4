"""``/api/v1/training``: start, watch, pause, resume and cancel fine-tunings."""

import json
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Response, jsonify

from services.context import RequestContext
from services.errors import as_service_error
from services.training.events import FollowingStopped
from services.training.progress import shown_status
from services.training.service import parse_event_number
from store.sql.jobs import JobStatus
from store.sql.tables import TrainingJob
from timestamps import timestamp
from webapp.http import sse
from webapp.http.access_log import answer
from webapp.http.current import context, principal, services
from webapp.http.parsing import parse_body, parse_query
from webapp.schemas.training import JobListSchema, TrainingSchema, to_request
from webapp.v1.error_body import error_body
from webapp.v1.job_view import camel, describe, describe_event, summarize
from webapp.v1.requests import last_event_id

bp = Blueprint("training", __name__, url_prefix="/api/v1/training")


@bp.post("/start")
def start() -> Response:
    """Check everything, write the job, then queue it."""
    job = services().training.start(context(), to_request(parse_body(TrainingSchema)))
    return jsonify(
        {
            "jobId": job.id,
            "status": job.status,
            "message": "Training job has been queued",
            "createdAt": timestamp(job.created_at),
        }
    )


@bp.get("/status/<job_id>")
def status(job_id: str) -> Response:
    """Where a job is."""
    return jsonify(describe(_find(job_id)))


@bp.get("/list")
def list_jobs() -> Response:
    """Jobs, newest first."""
    query = parse_query(JobListSchema)
    limit, offset = query["limit"], query["offset"]
    states = [query["status"]] if query["status"] else []
    jobs, total = services().training.page(principal(), states, limit, offset)
    return jsonify({"jobs": [summarize(job) for job in jobs], "total": total, "limit": limit, "offset": offset})


@bp.post("/cancel/<job_id>")
def cancel(job_id: str) -> Response:
    """End a job for good. Ending one that was cancelled changes nothing."""
    services().training.cancel(_find(job_id))
    message = "Training job has been cancelled"
    return jsonify({"jobId": job_id, "status": JobStatus.CANCELLED.value, "message": message})


@bp.post("/pause/<job_id>")
def pause(job_id: str) -> Response:
    """Save a checkpoint and stop, so that the job can go on later."""
    services().training.pause(_find(job_id))
    return jsonify(describe(_find(job_id)))


@bp.post("/resume/<job_id>")
def resume(job_id: str) -> Response:
    """Queue a paused or failed job again; it goes on from its last checkpoint."""
    services().training.resume(_find(job_id))
    return jsonify(describe(_find(job_id)))


@bp.get("/<job_id>/metrics")
def metrics(job_id: str) -> Response:
    """Every logged step. A step that was trained again after a loss shows as it was trained last."""
    found = services().training.metrics(_find(job_id))
    rows = [{"step": step, **{camel(name): value for name, value in values.items()}} for step, values in found]
    return jsonify({"jobId": job_id, "metrics": rows})


@bp.get("/<job_id>/events")
def events(job_id: str) -> Response:
    """What happens, as it happens; ``Last-Event-ID`` goes on after an event."""
    return sse.response(_stream(context(), _find(job_id), parse_event_number(last_event_id())))


@bp.get("/<job_id>/logs")
def logs(job_id: str) -> Response:
    """The end of the trainer's log."""
    return Response(services().training.log_tail(_find(job_id)), content_type="text/plain; charset=utf-8")


def _find(job_id: str) -> TrainingJob:
    return services().training.find(principal(), job_id)


def _stream(call: RequestContext, job: TrainingJob, after: int) -> Iterator[bytes]:
    try:
        for event in services().training.follow(call, job, after):
            if event is None:
                yield sse.KEEPALIVE
                continue
            yield sse.event(_encode(describe_event(event)), str(event.id), event.kind)
        yield sse.event(b"[DONE]")
    except FollowingStopped:
        # Without the last word: a browser comes back by itself, with the id of what it had last.
        return
    except Exception as error:
        known = as_service_error(error)
        answer().failed(known)
        body = {"jobId": job.id, "status": shown_status(job), **error_body(known.failure)}
        yield sse.event(_encode(body), name="error")


def _encode(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()

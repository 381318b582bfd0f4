"""``/api/v1/training``: start, watch, pause, resume and cancel fine-tunings."""

import json
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, jsonify, request

from store.jobs import EventKind, JobStatus, elapsed_seconds, new_job_id
from store.keys import Right
from store.models import TrainingEvent, TrainingJob
from store.outcomes import Detail
from tasks import client
from webapp import auth, errors, sse
from webapp.bodies import parse
from webapp.connection import client_gone
from webapp.services import Services, services
from webapp.v1 import job_events, training_checks
from webapp.v1.job_events import camel
from webapp.v1.training_schemas import TrainingSchema

bp = Blueprint("training", __name__, url_prefix="/api/v1/training")

#: How long a cancel waits for the runner. Seconds.
_CANCEL_SECONDS = 10.0
#: Most bytes of a log that are sent.
_LOG_BYTES = 256 * 1024


@bp.post("/start")
def start() -> Response:
    """Check everything, write the job, then queue it."""
    job = begin(services(), auth.principal().id, parse(TrainingSchema))
    return jsonify(
        {
            "jobId": job.id,
            "status": job.status,
            "message": "Training job has been queued",
            "createdAt": timestamp(job.created_at),
        }
    )


def begin(own: Services, owner: str, body: dict[str, Any]) -> TrainingJob:
    """Queue a checked body as a job. Raises ``ApiError``."""
    own.limiter.count_request(owner)
    job_id = new_job_id()
    checked = training_checks.check(own, job_id, owner, body)
    job = own.jobs.create(
        job_id, owner, body["baseModel"], checked.adapter_name, checked.spec.to_dict(), checked.options
    )
    # The row is there: a queue that is away now is made good by a worker that looks for forgotten jobs.
    client.enqueue_training(job_id)
    return job


@bp.get("/status/<job_id>")
def status(job_id: str) -> Response:
    """Where a job is."""
    return jsonify(describe(find(job_id)))


@bp.get("/list")
def list_jobs() -> Response:
    """Jobs, newest first."""
    limit, offset = _number("limit", 100, 1000), _number("offset", 0, None)
    word = request.args.get("status")
    wanted = None
    if word:
        try:
            wanted = JobStatus(word)
        except ValueError:
            allowed = ", ".join(status.value for status in JobStatus)
            raise errors.invalid([Detail("invalid_value", "status", f"'status' must be one of {allowed}")]) from None
    jobs, total = services().jobs.page(visible_owner(), [wanted] if wanted else None, limit, offset)
    return jsonify({"jobs": [_summary(job) for job in jobs], "total": total, "limit": limit, "offset": offset})


@bp.post("/cancel/<job_id>")
def cancel(job_id: str) -> Response:
    """End a job for good. Ending one that was cancelled changes nothing."""
    cancel_job(services(), find(job_id))
    message = "Training job has been cancelled"
    return jsonify({"jobId": job_id, "status": JobStatus.CANCELLED.value, "message": message})


def cancel_job(own: Services, job: TrainingJob) -> None:
    """Cancel a job and wait, within a bound, until no trainer runs it. Raises ``ApiError`` when it has ended."""
    if not own.jobs.cancel(job.id) and job.status != JobStatus.CANCELLED.value:
        raise errors.wrong_job_state(job.status, "cancelled")
    _wait_until_left(own, job.id, _CANCEL_SECONDS)


@bp.post("/pause/<job_id>")
def pause(job_id: str) -> Response:
    """Save a checkpoint and stop, so that the job can go on later."""
    own, job = services(), find(job_id)
    if not own.jobs.pause(job_id):
        raise errors.wrong_job_state(job.status, "paused")
    return jsonify(describe(find(job_id)))


@bp.post("/resume/<job_id>")
def resume(job_id: str) -> Response:
    """Queue a paused or failed job again; it goes on from its last checkpoint."""
    own, job = services(), find(job_id)
    if not own.jobs.resume(job_id):
        raise errors.wrong_job_state(job.status, "resumed")
    client.enqueue_training(job_id)
    return jsonify(describe(find(job_id)))


@bp.get("/<job_id>/metrics")
def metrics(job_id: str) -> Response:
    """Every logged step. A step that was trained again after a loss shows as it was trained last."""
    find(job_id)
    steps: dict[int, dict[str, Any]] = {}
    for event in _all_events(services(), job_id, EventKind.METRICS):
        row = steps.setdefault(event.step, {"step": event.step})
        row |= {camel(name): value for name, value in event.data.items()}
    return jsonify({"jobId": job_id, "metrics": [steps[step] for step in sorted(steps)]})


@bp.get("/<job_id>/events")
def events(job_id: str) -> Response:
    """What happens, as it happens; ``Last-Event-ID`` goes on behind an event."""
    find(job_id)
    text = request.headers.get("Last-Event-ID") or request.args.get("lastEventId") or ""
    return sse.response(_stream(services(), job_id, event_number(text)))


@bp.get("/<job_id>/logs")
def logs(job_id: str) -> Response:
    """The end of the trainer's log."""
    path = Path(find(job_id).spec["work_dir"]) / "trainer.log"
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_BYTES))
            text = file.read()
    except OSError:
        text = b""
    return Response(text, content_type="text/plain; charset=utf-8")


def find(job_id: str) -> TrainingJob:
    """Return a job of the caller's key; an admin sees all. Raises ``ApiError`` (404) for any other."""
    job = services().jobs.load(job_id)
    if job is None or visible_owner() not in (None, job.owner):
        raise errors.job_not_found(job_id)
    return job


def event_number(text: str) -> int:
    """Parse the id of an event; '' is before all. Raises ``ApiError`` (400)."""
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise errors.invalid([Detail("invalid_value", "lastEventId", "Last-Event-ID must be the id of an event")])
    return int(text)


def describe(job: TrainingJob) -> dict[str, Any]:
    """A job as the interface document shows it."""
    elapsed = elapsed_seconds(job)
    body: dict[str, Any] = {
        "jobId": job.id,
        "status": shown_status(job),
        "progress": {
            "currentEpoch": _epoch(job),
            "currentStep": job.step,
            "totalSteps": job.total_steps,
            "loss": job.loss,
            "learningRate": job.learning_rate,
        },
        "elapsedTimeSeconds": round(elapsed),
        "estimatedTimeRemainingSeconds": _remaining(job),
        "createdAt": timestamp(job.created_at),
        "startedAt": timestamp(job.started_at),
        "completedAt": timestamp(job.ended_at),
        "baseModel": job.base_model,
        "adapterName": job.adapter_name,
        "outputDir": job.options.get("output_dir"),
        "restarts": job.restarts,
        "message": job.message,
    }
    if job.error_code:
        body["error"] = {"code": job.error_code, "message": job.message}
    if job.result:
        shown = {name: value for name, value in job.result.items() if name not in ("path", "merged")}
        body["result"] = {camel(name): value for name, value in shown.items()}
    return body


def shown_status(job: TrainingJob) -> str:
    """The state; a job whose cancel its runner has not carried out yet is cancelled: nothing else can follow."""
    return job.wanted if job.wanted == JobStatus.CANCELLED.value else job.status


def _summary(job: TrainingJob) -> dict[str, Any]:
    return {
        "jobId": job.id,
        "baseModel": job.base_model,
        "status": shown_status(job),
        "createdAt": timestamp(job.created_at),
        "completedAt": timestamp(job.ended_at),
        "adapterName": job.adapter_name,
    }


def _epoch(job: TrainingJob) -> int:
    """The epoch that is being trained, from 1."""
    total = int(job.spec["params"]["epochs"]) or 1
    return min(total, int(job.epoch) + 1) if job.step else 0


def _remaining(job: TrainingJob) -> int | None:
    """Seconds, by the pace of the present run."""
    done = job.step - job.run_step
    if job.status != JobStatus.RUNNING.value or done < 1:
        return None
    run = elapsed_seconds(job) - job.seconds_before
    return round(run / done * (job.total_steps - job.step))


def _stream(own: Services, job_id: str, after: int) -> Iterator[bytes]:
    for event in job_events.follow(own, job_id, after, client_gone()):
        if event is None:
            yield sse.KEEPALIVE
            continue
        data = json.dumps(job_events.describe_event(event), ensure_ascii=False).encode()
        yield sse.event(data, str(event.id), event.kind)
        if job_events.is_end(event):
            yield sse.event(b"[DONE]")


def _all_events(own: Services, job_id: str, kind: str) -> Iterator[TrainingEvent]:
    after = 0
    while found := own.jobs.events(job_id, after, kind=kind):
        yield from found
        after = found[-1].id


def _wait_until_left(own: Services, job_id: str, seconds: float) -> None:
    """Wait until no runner has the job; its own lease ends the matter where the runner is gone."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        job = own.jobs.load(job_id)
        if job is None or job.status != JobStatus.RUNNING.value:
            return
        time.sleep(0.1)


def visible_owner() -> str | None:
    """Whose jobs the caller sees; None is everybody's."""
    principal = auth.principal()
    return None if principal.may(Right.ADMIN) else principal.id


def _number(name: str, default: int, most: int | None) -> int:
    text = request.args.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()) or int(text) > (most or 2**31):
        allowed = f"0 to {most}" if most else "0 or more"
        raise errors.invalid([Detail("invalid_value", name, f"'{name}' must be a whole number, {allowed}")])
    return int(text)


def timestamp(value: datetime | None) -> str | None:
    """As the interface document writes times."""
    return value.strftime("%Y-%m-%dT%H:%M:%SZ") if value is not None else None

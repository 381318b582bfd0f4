"""The views of ``/v1/fine_tuning/jobs``: OpenAI's words for the jobs of the native API."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from flask import Blueprint, Response, jsonify

from services.errors import InvalidRequest, ServiceError
from store.sql.adapters import reference
from store.sql.tables import TrainingJob
from store.token_log.outcomes import Detail
from webapp.http.current import context, principal, services
from webapp.http.parsing import parse_body, parse_query
from webapp.openai.fine_tuning_schemas import CheckpointQuery, JobSchema, PageQuery, metadata_filter, to_request
from webapp.openai.fine_tuning_view import (
    CHECKPOINT_PREFIX,
    EVENT_PREFIX,
    describe_checkpoint,
    describe_event,
    describe_job,
)
from webapp.openai.lists import page

bp = Blueprint("fine_tuning", __name__, url_prefix="/v1/fine_tuning/jobs")

#: OpenAI's names of fields that services know by the native API's.
_FIELDS = {
    "baseModel": "model",
    "resumeFrom": "model",
    "datasetPath": "training_file",
    "validationPath": "validation_file",
    "jobId": "fine_tuning_job_id",
}
#: Its words for a file whose rows cannot be trained on.
_FILE_FAULTS = {"datasetPath": "invalid_training_file", "validationPath": "invalid_validation_file"}


@bp.post("")
def create() -> Response:
    """Check everything, then queue the job."""
    body = parse_body(JobSchema)
    with _in_openai_words():
        named = services().models.resolve_name(principal(), body["model"])
        if named.folder is not None and named.adapter is None:
            description = (
                f"'{body['model']}' was placed by hand: only models and what was trained here are gone on from"
            )
            raise InvalidRequest.of("invalid_value", "model", description)
        start_adapter = reference(named.adapter) if named.adapter is not None else ""
        job = services().training.start(context(), to_request(body, named.spec.id, start_adapter))
    return jsonify(describe_job(job))


@bp.get("")
def list_jobs() -> Response:
    """Jobs, newest first."""
    query = parse_query(PageQuery)
    found, has_more = services().training.list_after(principal(), query["limit"], query["after"], metadata_filter())
    return jsonify({"object": "list", "data": [describe_job(job) for job in found], "has_more": has_more})


@bp.get("/<job_id>")
def show(job_id: str) -> Response:
    """One job."""
    return jsonify(describe_job(_find(job_id)))


@bp.post("/<job_id>/cancel")
def cancel(job_id: str) -> Response:
    """End a job for good."""
    services().training.cancel(_find(job_id))
    return show(job_id)


@bp.post("/<job_id>/pause")
def pause(job_id: str) -> Response:
    """Save a checkpoint and stop, so that the job can go on later."""
    services().training.pause(_find(job_id))
    return show(job_id)


@bp.post("/<job_id>/resume")
def resume(job_id: str) -> Response:
    """Let a job go on from its last checkpoint."""
    services().training.resume(_find(job_id))
    return show(job_id)


@bp.get("/<job_id>/events")
def events(job_id: str) -> Response:
    """What happened, newest first."""
    job, query = _find(job_id), parse_query(PageQuery)
    found, has_more = services().training.events_before(job, _number(query["after"], EVENT_PREFIX), query["limit"])
    return jsonify({"object": "list", "data": [describe_event(event, job) for event in found], "has_more": has_more})


@bp.get("/<job_id>/checkpoints")
def checkpoints(job_id: str) -> Response:
    """The checkpoints that can be asked, newest first."""
    job, query = _find(job_id), parse_query(CheckpointQuery)
    found = services().adapters.checkpoints_of(job)
    after = _number(query["after"], CHECKPOINT_PREFIX)
    if after is not None:
        found = [adapter for adapter in found if adapter.id < after]
    shown = [describe_checkpoint(adapter) for adapter in found[: query["limit"]]]
    return jsonify(page(shown, len(found) > query["limit"]))


def _find(job_id: str) -> TrainingJob:
    with _in_openai_words():
        return services().training.find(principal(), job_id)


def _number(text: str | None, prefix: str) -> int | None:
    """Return the number in an id of a list's element. Raises ``InvalidRequest``."""
    if text is None:
        return None
    number = text.removeprefix(prefix)
    if number == text or not (number.isascii() and number.isdigit() and len(number) < 19):
        description = f"Must be the id of the last element of the page before: '{prefix}…'"
        raise InvalidRequest.of("invalid_value", "after", description)
    return int(number)


@contextmanager
def _in_openai_words() -> Iterator[None]:
    """Let errors name the fields as OpenAI's clients do."""
    try:
        yield
    except ServiceError as error:
        details = tuple(_renamed(detail) for detail in error.failure.details)
        error.failure = replace(error.failure, details=details)
        raise


def _renamed(detail: Detail) -> Detail:
    words: dict[str, Any] = {"field": _FIELDS.get(detail.field, detail.field)}
    if detail.type == "dataset":
        words["type"] = _FILE_FAULTS.get(detail.field, detail.type)
    for ours, theirs in _FIELDS.items():
        words["description"] = words.get("description", detail.description).replace(f"'{ours}'", f"'{theirs}'")
    return replace(detail, **words)

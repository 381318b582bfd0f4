"""The views of ``/v1/batches``."""

from typing import Any

from flask import Blueprint, Response, jsonify

from store.sql.batches import BatchStatus
from store.sql.file_tables import Batch
from webapp.http.current import principal, services
from webapp.http.parsing import parse_body, parse_query
from webapp.openai.batches import usage
from webapp.openai.batches.schemas import BatchListQuery, BatchSchema
from webapp.openai.lists import page

bp = Blueprint("batches", __name__, url_prefix="/v1/batches")

_ENDS = (BatchStatus.COMPLETED, BatchStatus.FAILED, BatchStatus.EXPIRED, BatchStatus.CANCELLED)


@bp.post("")
def create() -> Response:
    """Begin a batch."""
    given = parse_body(BatchSchema)
    keep_seconds = given["output_expires_after"]["seconds"] if given["output_expires_after"] else None
    batch = services().batches.create(
        principal(),
        given["input_file_id"],
        given["endpoint"],
        given["completion_window"],
        given["metadata"],
        keep_seconds,
    )
    return jsonify(describe(batch))


@bp.get("")
def list_batches() -> Response:
    """Batches, newest first."""
    query = parse_query(BatchListQuery)
    found, has_more = services().batches.page(principal(), query["limit"], query["after"])
    return jsonify(page([describe(batch) for batch in found], has_more))


@bp.get("/<batch_id>")
def show(batch_id: str) -> Response:
    """How far a batch is."""
    return jsonify(describe(services().batches.find(principal(), batch_id)))


@bp.post("/<batch_id>/cancel")
def cancel(batch_id: str) -> Response:
    """End a batch; what was answered stays."""
    return jsonify(describe(services().batches.cancel(principal(), batch_id)))


def describe(batch: Batch) -> dict[str, Any]:
    """A batch in OpenAI's shape."""
    moments = {
        "in_progress": batch.in_progress_at,
        "finalizing": batch.finalizing_at,
        "cancelling": batch.cancelling_at,
        **{end.value: batch.ended_at if batch.status == end.value else None for end in _ENDS},
    }
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model or None,
        "errors": {"object": "list", "data": batch.errors} if batch.errors else None,
        "input_file_id": batch.input_file_id,
        "completion_window": "24h",
        "status": batch.status,
        "output_file_id": batch.output_file_id or None,
        "error_file_id": batch.error_file_id or None,
        "created_at": int(batch.created_at.timestamp()),
        "expires_at": int(batch.expires_at.timestamp()),
        **{f"{name}_at": int(moment.timestamp()) if moment else None for name, moment in moments.items()},
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "usage": usage.describe(batch.usage),
        "metadata": batch.labels or None,
    }

"""Training jobs and their events as the native API shows them."""

from typing import Any

from services.training.progress import current_epoch, remaining_seconds, shown_status
from store.sql.jobs import elapsed_seconds
from store.sql.tables import TrainingEvent, TrainingJob
from timestamps import timestamp

#: Where a result lies on the host is not shown.
_PRIVATE = ("path", "merged")


def describe(job: TrainingJob) -> dict[str, Any]:
    """A job as the interface document shows it, and what goes beyond it."""
    body: dict[str, Any] = {
        "jobId": job.id,
        "status": shown_status(job),
        "progress": {
            "currentEpoch": current_epoch(job),
            "currentStep": job.step,
            "totalSteps": job.total_steps,
            "loss": job.loss,
            "learningRate": job.learning_rate,
        },
        "elapsedTimeSeconds": round(elapsed_seconds(job)),
        "estimatedTimeRemainingSeconds": remaining_seconds(job),
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
        body["result"] = {camel(name): value for name, value in job.result.items() if name not in _PRIVATE}
    return body


def summarize(job: TrainingJob) -> dict[str, Any]:
    """A job in a list."""
    return {
        "jobId": job.id,
        "baseModel": job.base_model,
        "status": shown_status(job),
        "createdAt": timestamp(job.created_at),
        "completedAt": timestamp(job.ended_at),
        "adapterName": job.adapter_name,
    }


def describe_event(event: TrainingEvent) -> dict[str, Any]:
    """An event as clients see it."""
    data = {camel(name): value for name, value in event.data.items()}
    return {"jobId": event.job_id, "step": event.step, **data, "createdAt": timestamp(event.created_at)}


def camel(name: str) -> str:
    """``learning_rate`` as ``learningRate``."""
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)

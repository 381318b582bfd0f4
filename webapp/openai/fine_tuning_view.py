"""Training jobs as OpenAI's clients see them, whichever face began them."""

import math
import time
from pathlib import PurePath
from typing import Any

from engines.training.spec import Method
from services.training.progress import remaining_seconds, shown_status
from store.sql.jobs import EventKind, JobStatus
from store.sql.tables import Adapter, TrainingEvent, TrainingJob

EVENT_PREFIX, CHECKPOINT_PREFIX = "ftevent-", "ftckpt_"
_STATUS = {JobStatus.COMPLETED.value: "succeeded"}
#: OpenAI's names of what is measured.
_METRICS = {
    "train_loss": "loss",
    "train_mean_token_accuracy": "token_accuracy",
    "valid_loss": "eval_loss",
    "valid_mean_token_accuracy": "eval_token_accuracy",
    # An evaluation here is one of the whole file.
    "full_valid_loss": "eval_loss",
    "full_valid_mean_token_accuracy": "eval_token_accuracy",
}
_SPOKEN = {"train_loss": "training loss", "valid_loss": "validation loss", "full_valid_loss": "full validation loss"}
_MESSAGES = {
    JobStatus.QUEUED.value: "Job is queued",
    JobStatus.RUNNING.value: "Fine-tuning job started",
    JobStatus.COMPLETED.value: "The job has successfully completed",
}


def describe_job(job: TrainingJob) -> dict[str, Any]:
    """A job in OpenAI's shape."""
    asked = job.options.get("openai") or _of_native(job)
    status = shown_status(job)
    method, shown = asked["method"], asked["hyperparameters"]
    finish = remaining_seconds(job)
    ended = status in (JobStatus.COMPLETED.value, JobStatus.FAILED.value, JobStatus.CANCELLED.value)
    succeeded = status == JobStatus.COMPLETED.value
    return {
        "object": "fine_tuning.job",
        "id": job.id,
        "model": job.options.get("model") or job.base_model,
        "created_at": int(job.created_at.timestamp()),
        "finished_at": int(job.ended_at.timestamp()) if ended and job.ended_at else None,
        "fine_tuned_model": _model_name(job) if succeeded else None,
        "organization_id": job.tenant,
        "result_files": job.result.get("result_files", []),
        "status": _STATUS.get(status, status),
        "training_file": asked["training_file"],
        "validation_file": asked["validation_file"],
        # OpenAI's older place for them.
        "hyperparameters": {name: value for name, value in shown.items() if name != "beta"},
        "trained_tokens": job.result.get("trained_tokens") if succeeded else None,
        "seed": asked["seed"],
        "estimated_finish": None if finish is None else int(time.time()) + finish,
        "error": _error(job) if status == JobStatus.FAILED.value else None,
        "integrations": [],
        "method": {"type": method, method: {"hyperparameters": shown}},
        "user_provided_suffix": asked["suffix"] or None,
        "metadata": asked["metadata"] or None,
    }


def _model_name(job: TrainingJob) -> str | None:
    """The name that the model can be asked by; None where it is not served."""
    adapter = job.result.get("adapter")
    return (job.options.get("model_name") or adapter) if adapter else None


def _of_native(job: TrainingJob) -> dict[str, Any]:
    """What a job of the native API comes to in OpenAI's words."""
    params, validation = job.spec["params"], job.spec.get("validation", "")
    named = job.options.get("data_sets") or [PurePath(job.spec["dataset"]).name, PurePath(validation).name]
    dpo = job.spec["method"] == Method.DPO
    shown = {
        "n_epochs": max(1, math.ceil(params["epochs"])),
        "batch_size": params["batch_size"] * params["gradient_accumulation_steps"],
        # Of the base rate of the interface document.
        "learning_rate_multiplier": params["learning_rate"] / 2e-4,
    }
    return {
        "training_file": named[0],
        "validation_file": named[1] or None,
        "method": "dpo" if dpo else "supervised",
        "hyperparameters": {**shown, "beta": params["beta"]} if dpo else shown,
        "seed": params["seed"],
        "suffix": job.adapter_name,
        "metadata": None,
    }


def _error(job: TrainingJob) -> dict[str, Any]:
    faulty = job.error_code == "dataset"
    code = "invalid_training_file" if faulty else job.error_code or "server_error"
    return {"code": code, "message": job.message, "param": "training_file" if faulty else None}


def describe_event(event: TrainingEvent, job: TrainingJob) -> dict[str, Any]:
    """An event in OpenAI's shape."""
    level, kind, data = "info", "message", {}
    match event.kind:
        case EventKind.METRICS:
            kind, data = "metrics", {"step": event.step, "total_steps": job.total_steps, **_metrics(event.data)}
            losses = ", ".join(f"{words}={data[name]:.4g}" for name, words in _SPOKEN.items() if name in data)
            message = f"Step {event.step}/{job.total_steps}: {losses}"
        case EventKind.CHECKPOINT:
            message = f"Checkpoint created at step {event.step}"
            if "not_served" in event.data:
                level, message = "warn", f"{message}; {event.data['not_served']}"
        case EventKind.STARTED:
            message = f"Training goes on at step {event.step} of {event.data.get('total_steps', job.total_steps)}"
        case EventKind.STATUS:
            status, said = event.data["status"], event.data["message"]
            level = "error" if status == JobStatus.FAILED.value else "info"
            message = said if status not in _MESSAGES or said.startswith("The ") else _MESSAGES[status]
        case _:
            message = event.data["message"]
    return {
        "object": "fine_tuning.job.event",
        "id": f"{EVENT_PREFIX}{event.id}",
        "created_at": int(event.created_at.timestamp()),
        "level": level,
        "message": message,
        "type": kind,
        "data": data,
    }


def describe_checkpoint(adapter: Adapter) -> dict[str, Any]:
    """A checkpoint in OpenAI's shape."""
    return {
        "object": "fine_tuning.job.checkpoint",
        "id": f"{CHECKPOINT_PREFIX}{adapter.id}",
        "created_at": int(adapter.created_at.timestamp()),
        "fine_tuned_model_checkpoint": adapter.model_name,
        "fine_tuning_job_id": adapter.job_id,
        "step_number": adapter.step,
        "metrics": {"step": adapter.step, **_metrics(adapter.metrics)},
    }


def _metrics(found: dict[str, Any]) -> dict[str, float]:
    return {name: found[ours] for name, ours in _METRICS.items() if ours in found}

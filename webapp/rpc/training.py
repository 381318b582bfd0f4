"""The training services: one servicer behind both names."""

from collections.abc import Iterator
from typing import Any

import grpc
from marshmallow import ValidationError

from store.jobs import EventKind, JobStatus, elapsed_seconds
from store.models import TrainingEvent, TrainingJob
from store.outcomes import Detail
from webapp import auth, errors
from webapp.bodies import details_of
from webapp.rpc import ai_service_pb2 as pb
from webapp.services import Services
from webapp.v1 import job_events, training
from webapp.v1.training_schemas import TrainingSchema

_STATUS = {
    JobStatus.QUEUED.value: pb.TRAINING_STATUS_QUEUED,
    JobStatus.RUNNING.value: pb.TRAINING_STATUS_RUNNING,
    JobStatus.COMPLETED.value: pb.TRAINING_STATUS_COMPLETED,
    JobStatus.FAILED.value: pb.TRAINING_STATUS_FAILED,
    JobStatus.CANCELLED.value: pb.TRAINING_STATUS_CANCELLED,
    JobStatus.PAUSED.value: pb.TRAINING_STATUS_PAUSED,
}
_WORDS = {number: word for word, number in _STATUS.items()}
_PARAMS = {
    "num_train_epochs": "epochs",
    "per_device_batch_size": "batchSize",
    "gradient_accumulation_steps": "gradientAccumulationSteps",
    "learning_rate": "learningRate",
    "warmup_ratio": "warmupRatio",
    "max_seq_length": "maxSeqLength",
    "save_steps": "saveSteps",
    "logging_steps": "loggingSteps",
    "eval_steps": "evalSteps",
    "lora_rank": "loraRank",
    "lora_alpha": "loraAlpha",
    "lora_dropout": "loraDropout",
    "eval_split": "evalSplit",
    "weight_decay": "weightDecay",
    "lr_scheduler": "lrScheduler",
    "seed": "seed",
}
_METRICS = ("loss", "eval_loss", "learning_rate", "grad_norm", "tokens_per_second")
_DEFAULT_LIMIT = 100
_MAX_LIMIT = 1000


class TrainingServicer:
    """``AiTraining`` and ``TrainingService``."""

    def __init__(self, own: Services) -> None:
        self._own = own

    def StartTraining(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        """Start a job and stream its progress to the end; leaving the call does not stop the job."""
        try:
            body = TrainingSchema().load(to_body(request))
        except ValidationError as error:
            raise errors.invalid(details_of(error)) from error
        job = training.begin(self._own, auth.principal().id, body)
        trace_id = request.metadata.trace_id or job.id
        yield _progress(job, trace_id)
        for event in job_events.follow(self._own, job.id, 0, lambda: not context.is_active()):
            found = self._own.jobs.load(job.id)
            if event is not None and found is not None:
                yield _progress(found, trace_id, event)

    def GetTrainingStatus(self, request: Any, _: grpc.ServicerContext) -> Any:
        """Where a job is."""
        job = training.find(request.job_id)
        return pb.TrainingStatusResponse(
            job_id=job.id,
            status=_STATUS[training.shown_status(job)],
            latest_progress=_progress(job, job.id),
            output_path=str(job.options.get("output_dir", "")),
            adapter=str(job.result.get("adapter", "")),
        )

    def CancelTraining(self, request: Any, _: grpc.ServicerContext) -> Any:
        """End a job for good."""
        job = training.find(request.job_id)
        training.cancel_job(self._own, job)
        return pb.CancelTrainingResponse(job_id=job.id, success=True, message="Training job has been cancelled")

    def ListTrainingJobs(self, request: Any, _: grpc.ServicerContext) -> Any:
        """Jobs, newest first."""
        limit = request.limit or _DEFAULT_LIMIT
        if not 0 < limit <= _MAX_LIMIT or request.offset < 0:
            raise errors.invalid(
                [Detail("invalid_value", "limit", f"'limit' must be 1 to {_MAX_LIMIT}, offset 0 or more")]
            )
        wanted = [JobStatus(_WORDS[number]) for number in request.status_filter if number in _WORDS]
        if len(wanted) < len(request.status_filter):
            raise errors.invalid([Detail("invalid_value", "statusFilter", "an unknown status cannot be asked for")])
        jobs, total = self._own.jobs.page(training.visible_owner(), wanted or None, limit, request.offset)
        return pb.ListTrainingJobsResponse(jobs=[_summary(job) for job in jobs], total=total)


def to_body(request: Any) -> dict[str, Any]:
    """Return a ``TrainingRequest`` as a body of the native API; what is unset is left out."""
    params, lora = request.hyperparams, request.lora
    body: dict[str, Any] = {
        "baseModel": request.base_model,
        "outputDir": request.output_dir,
        "datasetPath": request.dataset_path or request.dataset.path,
        "hyperParams": {ours: getattr(params, name) for name, ours in _PARAMS.items() if params.HasField(name)},
        "loraConfig": {},
    }
    for name, ours in (("r", "r"), ("lora_alpha", "loraAlpha"), ("lora_dropout", "loraDropout")):
        if lora.HasField(name):
            body["loraConfig"][ours] = getattr(lora, name)
    if lora.target_modules:
        body["loraConfig"]["targetModules"] = list(lora.target_modules)
    if lora.bias:
        body["loraConfig"]["bias"] = lora.bias
    if request.character_name:
        body["adapterName"] = request.character_name
    if request.dataset.format:
        body["datasetFormat"] = request.dataset.format
    if request.quantization.use_4bit:
        given = request.quantization
        names = (("bnb4bitComputeDtype", given.bnb_4bit_compute_dtype), ("bnb4bitQuantType", given.bnb_4bit_quant_type))
        body["quantization"] = {"use4bit": True, **{name: value for name, value in names if value}}
    return body


def _progress(job: TrainingJob, trace_id: str, event: TrainingEvent | None = None) -> Any:
    shown = training.describe(job)
    total = int(job.spec["params"]["epochs"])
    message = pb.TrainingProgress(
        job_id=job.id,
        status=_STATUS[shown["status"]],
        current_epoch=shown["progress"]["currentEpoch"],
        total_epochs=total,
        current_step=job.step,
        total_steps=job.total_steps,
        progress_percent=_percent(job),
        loss=job.loss or 0.0,
        learning_rate=job.learning_rate or 0.0,
        elapsed_seconds=elapsed_seconds(job),
        eta_seconds=shown["estimatedTimeRemainingSeconds"] or 0,
        message=job.message,
        error=job.message if job.error_code else "",
        trace_id=trace_id,
    )
    if event is not None:
        if event.kind == EventKind.METRICS:
            values = {name: event.data[name] for name in _METRICS if name in event.data}
            message.metrics.CopyFrom(pb.TrainingMetrics(step=event.step, epoch=event.data.get("epoch", 0.0), **values))
        elif "message" in event.data:
            message.message = event.data["message"]
    return message


def _percent(job: TrainingJob) -> float:
    return 100 * job.step / job.total_steps if job.total_steps else 0.0


def _summary(job: TrainingJob) -> Any:
    return pb.TrainingJobSummary(
        job_id=job.id,
        status=_STATUS[training.shown_status(job)],
        base_model=job.base_model,
        character_name=job.adapter_name,
        progress_percent=_percent(job),
        created_at=training.timestamp(job.created_at) or "",
        updated_at=training.timestamp(job.ended_at or job.run_started_at or job.started_at or job.created_at) or "",
    )

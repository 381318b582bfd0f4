"""The training services: one servicer behind both names."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import grpc

from services.context import RequestContext
from services.errors import InvalidRequest
from services.training.events import FollowingStopped
from services.training.progress import current_epoch, percent, remaining_seconds, shown_status
from services.training.service import TrainingService
from store.sql.jobs import EventKind, JobStatus, elapsed_seconds
from store.sql.tables import TrainingEvent, TrainingJob
from webapp.rpc import ai_service_pb2 as pb
from webapp.rpc.interceptor import current_call
from webapp.schemas.loading import load
from webapp.schemas.training import TrainingSchema, to_request

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

    def __init__(self, training: TrainingService) -> None:
        self._training = training

    def StartTraining(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        """Start a job and stream its progress to the end; leaving the call does not stop the job."""
        call = current_call()
        caller = RequestContext(
            call.principal,
            call.operation,
            idempotency_key=call.idempotency_key,
            disconnected=lambda: not context.is_active(),
        )
        job = self._training.start(caller, to_request(load(TrainingSchema, to_body(request))))
        trace_id = request.metadata.trace_id or job.id
        yield _progress(job, trace_id)
        try:
            for event in self._training.follow(caller, job, 0):
                if event is not None:
                    yield _progress(self._training.find(call.principal, job.id), trace_id, event)
        except FollowingStopped:
            # The call ends with the last state; the job goes on, and can be asked for.
            return

    def GetTrainingStatus(self, request: Any, _: grpc.ServicerContext) -> Any:
        """Where a job is."""
        job = self._training.find(current_call().principal, request.job_id)
        return pb.TrainingStatusResponse(
            job_id=job.id,
            status=_STATUS[shown_status(job)],
            latest_progress=_progress(job, job.id),
            output_path=str(job.options.get("output_dir", "")),
            adapter=str(job.result.get("adapter", "")),
        )

    def CancelTraining(self, request: Any, _: grpc.ServicerContext) -> Any:
        """End a job for good."""
        job = self._training.find(current_call().principal, request.job_id)
        self._training.cancel(job)
        return pb.CancelTrainingResponse(job_id=job.id, success=True, message="Training job has been cancelled")

    def ListTrainingJobs(self, request: Any, _: grpc.ServicerContext) -> Any:
        """Jobs, newest first."""
        limit = request.limit or _DEFAULT_LIMIT
        if not 0 < limit <= _MAX_LIMIT or request.offset < 0:
            description = f"'limit' must be 1 to {_MAX_LIMIT}, 'offset' 0 or more"
            raise InvalidRequest.of("invalid_value", "limit", description)
        states = [JobStatus(_WORDS[number]) for number in request.status_filter if number in _WORDS]
        if len(states) < len(request.status_filter):
            raise InvalidRequest.of("invalid_value", "statusFilter", "an unknown status cannot be asked for")
        jobs, total = self._training.page(current_call().principal, states, limit, request.offset)
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
    message = pb.TrainingProgress(
        job_id=job.id,
        status=_STATUS[shown_status(job)],
        current_epoch=current_epoch(job),
        total_epochs=int(job.spec["params"]["epochs"]),
        current_step=job.step,
        total_steps=job.total_steps,
        progress_percent=percent(job),
        loss=job.loss or 0.0,
        learning_rate=job.learning_rate or 0.0,
        elapsed_seconds=elapsed_seconds(job),
        eta_seconds=remaining_seconds(job) or 0,
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


def _summary(job: TrainingJob) -> Any:
    return pb.TrainingJobSummary(
        job_id=job.id,
        status=_STATUS[shown_status(job)],
        base_model=job.base_model,
        character_name=job.adapter_name,
        progress_percent=percent(job),
        created_at=_timestamp(job.created_at),
        updated_at=_timestamp(job.ended_at or job.run_started_at or job.started_at or job.created_at),
    )


def _timestamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")

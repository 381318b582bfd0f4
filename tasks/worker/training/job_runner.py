"""One training job from its claim to its end: the child, the lease, and what comes of it."""

import logging
import threading
from functools import partial
from pathlib import Path
from typing import Any

from engines.training.protocol import Event
from engines.training.spec import TrainingSpec
from settings import Settings
from store.files.folder import remove_copies
from store.sql.jobs import EventKind, JobStatus, JobStore
from store.sql.leases import Lease, LeaseLostError
from store.sql.tables import Adapter, TrainingJob
from tasks.worker.training.publishing import Publisher
from tasks.worker.training.trainer_monitor import TrainerMonitor
from tasks.worker.training.trainer_process import SPEC_NAME, TrainerProcess

log = logging.getLogger(__name__)


class JobRunner:
    """Runs jobs, one at a time. ``stopping`` is set when the worker is told to stop."""

    def __init__(
        self,
        settings: Settings,
        jobs: JobStore,
        publisher: Publisher,
        name: str,
        stopping: threading.Event,
    ) -> None:
        self._settings = settings
        self._jobs = jobs
        self._publisher = publisher
        self._name = name
        self._stopping = stopping
        #: The job that it has now.
        self._job_id: str | None = None

    def progress(self) -> dict[str, Any]:
        """Return the job that it has now and how far that is; empty for none. Raises ``SQLAlchemyError``."""
        job = None if self._job_id is None else self._jobs.load(self._job_id)
        if job is None:
            return {}
        return {"job": job.id, "step": job.step, "total_steps": job.total_steps, "epoch": job.epoch, "loss": job.loss}

    def run(self, job_id: str) -> Adapter | None:
        """Run a job if nobody else does; return the adapter that came of it, if one did."""
        lease = self._jobs.claim(job_id, self._name)
        if lease is None:
            log.info("Nothing to do: the job has ended, or another runner has it", extra={"job_id": job_id})
            return None
        self._job_id = job_id
        try:
            return self._run(lease)
        except LeaseLostError as error:
            log.warning("The job was taken away: %s", error, extra={"job_id": job_id})
            self._after_lease_lost(lease)
        except Exception:
            # Left alone the job would be claimed again, and fail the same way until its restarts are used up.
            log.exception("The job's runner failed", extra={"job_id": job_id})
            message = "The training worker could not finish the job; its log tells why. The job can be resumed"
            self._jobs.finish(lease, JobStatus.FAILED, message, error_code="runner")
        finally:
            self._job_id = None
        return None

    def _run(self, lease: Lease) -> Adapter | None:
        job = self._jobs.load(lease.job_id)
        assert job is not None
        spec = TrainingSpec.from_dict(job.spec)
        work_dir = Path(spec.work_dir)
        limit = int(job.options["max_restarts"])
        restarts = job.restarts
        while True:
            if restarts > limit:
                message = f"The trainer was lost {restarts} times (maxRestarts is {limit}); see the job's log"
                self._jobs.finish(lease, JobStatus.FAILED, message, error_code="restarts")
                return None
            try:
                work_dir.mkdir(parents=True, exist_ok=True)
                spec.save(work_dir / SPEC_NAME)
            except OSError as error:
                message = f"The output folder cannot be written ({error.strerror}); make room, then resume the job"
                self._jobs.finish(lease, JobStatus.FAILED, message, error_code="output")
                return None
            process = TrainerProcess(self._settings, work_dir)
            on_checkpoint = partial(self._publisher.checkpoint, lease, job)
            monitor = TrainerMonitor(self._jobs, lease, process, self._stopping, on_checkpoint)
            last = monitor.run()
            if last is not None or monitor.requested:
                return self._finish(lease, job, last or {}, monitor.requested)
            restarts += 1
            note = {"message": f"The trainer ended without a word ({monitor.status}); it is started again"}
            self._jobs.add_event(lease, EventKind.NOTE, 0, note, restarts=restarts)

    def _finish(self, lease: Lease, job: TrainingJob, last: dict[str, Any], requested: str) -> Adapter | None:
        """End the job as its trainer's last event and the client's request say."""
        event = last.get("event")
        if requested == JobStatus.CANCELLED.value:
            self._jobs.finish(lease, JobStatus.CANCELLED, "Training job has been cancelled")
            remove_copies(job.options)
        elif event == Event.COMPLETED:
            return self._complete(lease, job, last)
        elif event == Event.FAILED:
            self._jobs.finish(lease, JobStatus.FAILED, str(last["message"]), error_code=str(last["code"])[:40])
        elif requested == JobStatus.PAUSED.value:
            message = "Paused; a checkpoint holds this step" if event else "Paused at its last checkpoint"
            self._jobs.finish(lease, JobStatus.PAUSED, message)
        else:
            # The worker is being stopped: the next one goes on.
            self._jobs.finish(lease, JobStatus.QUEUED, "The worker was stopped; another goes on")
        return None

    def _complete(self, lease: Lease, job: TrainingJob, last: dict[str, Any]) -> Adapter | None:
        result = {**last["result"], "metrics": last["metrics"]}
        values = {"step": last["step"], "epoch": TrainingSpec.from_dict(job.spec).params.epochs}
        published: list[Adapter] = []
        with self._publisher.result(lease, job, result, published) as publish:
            self._jobs.finish(lease, JobStatus.COMPLETED, _completed_message(job, result), publish, **values)
        remove_copies(job.options)
        return published[0] if published else None

    def _after_lease_lost(self, lease: Lease) -> None:
        """A cancel that came at the last moment leaves the job to be ended."""
        job = self._jobs.load(lease.job_id)
        if job is not None and job.fence == lease.fence and job.requested_status == JobStatus.CANCELLED.value:
            self._jobs.finish(lease, JobStatus.CANCELLED, "Training job has been cancelled")


def _completed_message(job: TrainingJob, result: dict[str, Any]) -> str:
    return str(result.get("not_served") or "Training job has been completed")

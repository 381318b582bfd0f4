"""One training job from its claim to its end: the child, the lease, and what comes of it."""

import logging
import queue
import threading
import time
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from engines.errors import UnknownModel
from engines.registry import Registry
from engines.trainer.protocol import Event
from engines.training.adapter_check import FILES, BrokenAdapter, inspect_adapter
from engines.training.spec import TrainingSpec
from settings import Settings
from store.adapters import AdapterStore, Draft, reference
from store.jobs import LEASE_SECONDS, EventKind, Fenced, JobStatus, JobStore, Lease
from store.models import Adapter, TrainingJob
from tasks.trainer_process import SPEC_NAME, TrainerProcess

log = logging.getLogger(__name__)

#: How often the lease is renewed and the client's wish is read. Seconds.
RENEW_SECONDS = 1.0
#: How long a trainer may take to save a checkpoint when it is told to stop. Seconds.
SAVE_SECONDS = 60.0


class JobRunner:
    """Runs jobs, one at a time. ``stopping`` is set when the worker is told to stop."""

    def __init__(
        self,
        settings: Settings,
        jobs: JobStore,
        adapters: AdapterStore,
        registry: Registry,
        name: str,
        stopping: threading.Event,
    ) -> None:
        self._settings = settings
        self._jobs = jobs
        self._adapters = adapters
        self._registry = registry
        self._name = name
        self._stopping = stopping

    def run(self, job_id: str) -> Adapter | None:
        """Run a job if nobody else does; return the adapter that came of it, if one did."""
        lease = self._jobs.claim(job_id, self._name)
        if lease is None:
            log.info("Nothing to do: the job has ended, or another runner has it", extra={"job_id": job_id})
            return None
        try:
            return self._run(lease)
        except Fenced as error:
            log.warning("The job was taken away: %s", error, extra={"job_id": job_id})
            self._after_fence(lease)
        except Exception:
            # Left alone the job would be claimed again, and fail the same way until its restarts are used up.
            log.exception("The job's runner failed", extra={"job_id": job_id})
            message = "The training worker could not finish the job; its log tells why. The job can be resumed"
            self._jobs.end(lease, JobStatus.FAILED, message, error_code="runner")
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
                self._jobs.end(lease, JobStatus.FAILED, message, error_code="restarts")
                return None
            try:
                work_dir.mkdir(parents=True, exist_ok=True)
                spec.save(work_dir / SPEC_NAME)
            except OSError as error:
                message = f"The output folder cannot be written ({error.strerror}); make room, then resume the job"
                self._jobs.end(lease, JobStatus.FAILED, message, error_code="output")
                return None
            watch = _Watch(self._jobs, lease, TrainerProcess(self._settings, work_dir), self._stopping)
            last = watch.run()
            if last is not None or watch.wanted:
                return self._finish(lease, job, last or {}, watch.wanted)
            restarts += 1
            note = {"message": f"The trainer ended without a word ({watch.status}); it is started again"}
            self._jobs.event(lease, EventKind.NOTE, 0, note, restarts=restarts)

    def _finish(self, lease: Lease, job: TrainingJob, last: dict[str, Any], wanted: str) -> Adapter | None:
        """End the job as its trainer's last word and the client's wish say."""
        event = last.get("event")
        if wanted == JobStatus.CANCELLED.value:
            self._jobs.end(lease, JobStatus.CANCELLED, "Training job has been cancelled")
        elif event == Event.COMPLETED:
            return self._complete(lease, job, last)
        elif event == Event.FAILED:
            self._jobs.end(lease, JobStatus.FAILED, str(last["message"]), error_code=str(last["code"])[:40])
        elif wanted == JobStatus.PAUSED.value:
            message = "Paused; a checkpoint holds this step" if event else "Paused at its last checkpoint"
            self._jobs.end(lease, JobStatus.PAUSED, message)
        else:
            # The worker is being stopped: the next one goes on.
            self._jobs.end(lease, JobStatus.QUEUED, "The worker was stopped; another goes on")
        return None

    def _complete(self, lease: Lease, job: TrainingJob, last: dict[str, Any]) -> Adapter | None:
        result = {**last["result"], "metrics": last["metrics"]}
        values = {"step": last["step"], "epoch": TrainingSpec.from_dict(job.spec).params.epochs}
        draft = None
        if result["kind"] == "adapter":
            draft = self._draft(job, result)
        made: list[Adapter] = []

        def along(session: Session) -> dict[str, Any]:
            if draft is not None:
                made.append(self._publish(session, draft, job, result))
            return {"result": result}

        try:
            self._jobs.end(lease, JobStatus.COMPLETED, _completed_message(job, result), along, **values)
        except BaseException:
            if draft is not None:
                self._adapters.discard(draft)
            raise
        return made[0] if made else None

    def _draft(self, job: TrainingJob, result: dict[str, Any]) -> Draft | None:
        """Check the adapter and copy it; a sentence in ``result`` where it cannot be served."""
        folder = Path(result["path"])
        try:
            facts = inspect_adapter(folder, self._registry.resolve(job.options["model"]))
        except UnknownModel:
            result["not_served"] = "The adapter is not served: its base model is not in the model file"
            return None
        except BrokenAdapter as error:
            result["not_served"] = f"The adapter cannot be served: {error}"
            return None
        return self._adapters.draft(folder, FILES, facts.rank, facts.checksum)

    def _publish(self, session: Session, draft: Draft, job: TrainingJob, result: dict[str, Any]) -> Adapter:
        name, metrics = job.adapter_name, result["metrics"]
        adapter = self._adapters.add(session, draft, name, job.options["model"], job.id, metrics)
        result["adapter"] = reference(adapter)
        threshold = job.options.get("promote_below")
        judged = metrics.get("eval_loss", metrics.get("loss"))
        if threshold is None or (judged is not None and judged <= threshold):
            self._adapters.point(session, name, adapter.version)
        else:
            result["not_promoted"] = f"Its loss {judged} is above promoteBelow {threshold}: name '{name}' was not moved"
        return adapter

    def _after_fence(self, lease: Lease) -> None:
        """A cancel that came at the last moment leaves the job to be ended."""
        job = self._jobs.load(lease.job_id)
        if job is not None and job.fence == lease.fence and job.wanted == JobStatus.CANCELLED.value:
            self._jobs.end(lease, JobStatus.CANCELLED, "Training job has been cancelled")


class _Watch:
    """Listens to one trainer and keeps the lease meanwhile."""

    def __init__(self, jobs: JobStore, lease: Lease, process: TrainerProcess, stopping: threading.Event) -> None:
        self._jobs = jobs
        self._lease = lease
        self._process = process
        self._stopping = stopping
        #: What the client wants the job to become; ``stopped`` when the worker is leaving.
        self.wanted = ""
        #: How the trainer ended, for the log.
        self.status = ""
        self._last: dict[str, Any] | None = None
        self._kill_at: float | None = None
        self._renewed = time.monotonic()

    def run(self) -> dict[str, Any] | None:
        """Return the trainer's last word: completed, failed or paused; None when it said none. Raises ``Fenced``."""
        try:
            self._listen()
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        status = self._process.wait()
        self.status = f"signal {-status}" if status < 0 else f"exit status {status}"
        return self._last

    def _listen(self) -> None:
        due = 0.0
        while True:
            if time.monotonic() >= due:
                self._renew()
                due = time.monotonic() + RENEW_SECONDS
            if self._kill_at is not None and time.monotonic() > self._kill_at:
                self._process.kill()
            try:
                event = self._process.next(timeout=max(0.01, due - time.monotonic()))
            except queue.Empty:
                continue
            if event is None:
                return
            self._take(event)

    def _renew(self) -> None:
        try:
            wanted = self._jobs.renew(self._lease)
        except SQLAlchemyError as error:
            # Until the lease ends nobody else may run it; behind that somebody may.
            if time.monotonic() - self._renewed > LEASE_SECONDS - 2 * RENEW_SECONDS:
                raise Fenced("the database cannot be reached, and the lease ends") from error
            log.warning("The lease cannot be renewed now: %s", error.__class__.__name__)
            return
        self._renewed = time.monotonic()
        if self._stopping.is_set() and not wanted:
            wanted = "stopped"
        if wanted == self.wanted:
            return
        self.wanted = wanted
        if wanted == JobStatus.CANCELLED.value:
            self._process.kill()
        elif wanted:
            self._process.stop()
            self._kill_at = time.monotonic() + SAVE_SECONDS

    def _take(self, event: dict[str, Any]) -> None:
        kind = event.pop("event")
        step, epoch = int(event.get("step", 0)), event.get("epoch")
        if kind in (Event.COMPLETED, Event.FAILED, Event.PAUSED):
            self._last = {"event": kind, **event}
            if kind == Event.PAUSED:
                self._jobs.progress(self._lease, step=step)
        elif kind == Event.STARTED:
            self._jobs.began(self._lease, step, event["total_steps"], event["samples"])
        elif kind == Event.STEP:
            self._jobs.progress(self._lease, step=step, epoch=epoch)
        elif kind == Event.METRICS:
            shown = {name: event[name] for name in ("loss", "learning_rate") if name in event}
            data = {name: value for name, value in event.items() if name != "step"}
            self._jobs.event(self._lease, EventKind.METRICS, step, data, step=step, epoch=epoch, **shown)
        elif kind == Event.CHECKPOINT:
            self._jobs.event(self._lease, EventKind.CHECKPOINT, step, {})
        else:
            self._jobs.event(self._lease, EventKind.NOTE, step, {"message": str(event.get("message"))})


def _completed_message(job: TrainingJob, result: dict[str, Any]) -> str:
    return str(result.get("not_served") or "Training job has been completed")

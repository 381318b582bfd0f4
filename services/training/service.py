"""Fine-tuning jobs: started, found, followed, changed."""

import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis
from redis.exceptions import RedisError

from services.access import Access
from services.context import RequestContext
from services.errors import InvalidRequest, JobNotFound, WrongJobState
from services.files import FileService
from services.idempotency import Idempotency
from services.lifecycle import Lifecycle
from services.limits import Limits
from services.training.checks import CheckedTraining, TrainingChecks
from services.training.events import follow
from services.training.fine_tuning import JOB_PREFIX
from services.training.request import TrainingRequest
from store.files.folder import remove_copies
from store.principal import Principal
from store.sql.jobs import JobStatus, JobStore, new_job_id
from store.sql.tables import TrainingEvent, TrainingJob
from tasks.broker import submit

log = logging.getLogger(__name__)

#: How long a cancel waits for the runner. Seconds.
_CANCEL_SECONDS = 10.0
#: How long an idempotency key means the job that it began. Seconds.
_IDEMPOTENCY_SECONDS = 86_400
#: Most bytes of a log that are sent.
_LOG_BYTES = 256 * 1024


class TrainingService:
    """The jobs of all tenants. Errors are ``ServiceError``, and those of the stores."""

    def __init__(
        self,
        client: redis.Redis,
        access: Access,
        limits: Limits,
        checks: TrainingChecks,
        jobs: JobStore,
        files: FileService,
        idempotency: Idempotency,
        lifecycle: Lifecycle,
        keepalive: float,
    ) -> None:
        self._redis = client
        self._access = access
        self._limits = limits
        self._checks = checks
        self._jobs = jobs
        self._files = files
        self._idempotency = idempotency
        self._lifecycle = lifecycle
        self._keepalive = keepalive

    def start(self, context: RequestContext, request: TrainingRequest) -> TrainingJob:
        """Check everything, write the job, then queue it."""
        principal = context.principal
        self._access.require_active(principal)
        self._limits.count_request(principal)
        name = self._idempotency.name_of(context)
        begun = self._idempotency.find(name, request.body)
        if begun is not None:
            return self.find(principal, begun)
        job_id = new_job_id() if request.fine_tuning is None else new_job_id(JOB_PREFIX)
        checked = self._checks.check(principal, job_id, request)
        faster = self._idempotency.remember(name, job_id, request.body, _IDEMPOTENCY_SECONDS)
        if faster is not None:
            return self.find(principal, faster)
        with self._idempotency.forget_on_error(name):
            job = self._create_with_files(principal, job_id, request, checked)
        self._enqueue(job_id)
        return job

    def _enqueue(self, job_id: str) -> None:
        try:
            submit.enqueue_training(self._redis, job_id)
        except RedisError as error:
            # The job is in the database, so it is queued: a worker that looks for forgotten jobs sends it. An error
            # here would let the client start it a second time.
            log.warning("The job cannot be sent now, a worker will find it: %s", error, extra={"job_id": job_id})

    def _create_with_files(
        self, principal: Principal, job_id: str, request: TrainingRequest, checked: CheckedTraining
    ) -> TrainingJob:
        try:
            for copy in checked.copies:
                self._files.link_or_copy(copy.source, copy.target, copy.field)
            return self._create(principal, job_id, request, checked)
        except BaseException:
            if checked.copies:
                shutil.rmtree(checked.spec.work_dir, ignore_errors=True)
            raise

    def _create(
        self, principal: Principal, job_id: str, request: TrainingRequest, checked: CheckedTraining
    ) -> TrainingJob:
        return self._jobs.create(
            job_id,
            principal.id,
            request.base_model,
            checked.adapter_name,
            checked.spec.to_dict(),
            checked.options,
            principal.tenant,
            request.fine_tuning.notes(job_id) if request.fine_tuning is not None else (),
        )

    def find(self, principal: Principal, job_id: str) -> TrainingJob:
        """Return a job that the principal sees. Raises ``JobNotFound`` for any other."""
        job = self._jobs.load(job_id)
        if job is None or not self._access.can_see(principal, job.tenant):
            raise JobNotFound(job_id)
        return job

    def page(
        self, principal: Principal, states: list[JobStatus], limit: int, offset: int
    ) -> tuple[list[TrainingJob], int]:
        """Return a page of the jobs that the principal sees, newest first, and how many there are. No state is any."""
        return self._jobs.page(self._access.visible_tenant(principal), states or None, limit, offset)

    def list_after(
        self, principal: Principal, limit: int, after: str | None, metadata: dict[str, str] | None
    ) -> tuple[list[TrainingJob], bool]:
        """Return the jobs that the principal sees behind one, newest first, and whether more follow.

        Only those that an OpenAI client gave this ``metadata``, among others; None is all, and {} those without any.
        Raises ``InvalidRequest``.
        """

        def wanted(job: TrainingJob) -> bool:
            given = (job.options.get("openai") or {}).get("metadata") or {}
            return metadata is None or (metadata.items() <= given.items() if metadata else not given)

        last = None
        if after is not None:
            try:
                last = self.find(principal, after)
            except JobNotFound:
                description = "Must be the id of the last element of the page before"
                raise InvalidRequest.of("invalid_value", "after", description) from None
        return self._jobs.after(self._access.visible_tenant(principal), last, limit, wanted)

    def events_before(self, job: TrainingJob, before: int | None, limit: int) -> tuple[list[TrainingEvent], bool]:
        """Return what happened to a job before an event, newest first, and whether there is more."""
        found = self._jobs.events_before(job.id, before, limit + 1)
        return found[:limit], len(found) > limit

    def cancel(self, job: TrainingJob) -> None:
        """End a job for good, and wait, within a bound, until no trainer runs it. Raises ``WrongJobState``."""
        if not self._jobs.cancel(job.id) and job.status != JobStatus.CANCELLED.value:
            raise WrongJobState(job.status, "cancelled")
        ends = time.monotonic() + _CANCEL_SECONDS
        while time.monotonic() < ends:
            found = self._jobs.load(job.id)
            # The runner's own lease ends the matter where it is gone.
            if found is None or found.status != JobStatus.RUNNING.value:
                remove_copies(job.options)
                return
            time.sleep(0.1)

    def pause(self, job: TrainingJob) -> None:
        """Let a job save a checkpoint and stop, so that it can go on later. Raises ``WrongJobState``."""
        if not self._jobs.pause(job.id):
            raise WrongJobState(job.status, "paused")

    def resume(self, job: TrainingJob) -> None:
        """Queue a paused or failed job again; it goes on from its last checkpoint. Raises ``WrongJobState``."""
        if not self._jobs.resume(job.id):
            raise WrongJobState(job.status, "resumed")
        self._enqueue(job.id)

    def follow(self, context: RequestContext, job: TrainingJob, after: int) -> Iterator[TrainingEvent | None]:
        """Yield what happens to a job; see ``services.training.events.follow``."""
        return follow(self._jobs, self._access, self._lifecycle, self._keepalive, context, job.id, after)

    def metrics(self, job: TrainingJob) -> list[tuple[int, dict[str, Any]]]:
        """Return every logged step with its values. A step that was trained again shows as it was trained last."""
        return self._jobs.metrics(job.id)

    @staticmethod
    def log_tail(job: TrainingJob) -> bytes:
        """Return the end of the trainer's log; empty where there is none yet."""
        path = Path(job.spec["work_dir"]) / "trainer.log"
        try:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - _LOG_BYTES))
                return file.read()
        except OSError:
            return b""


def parse_event_number(text: str) -> int:
    """Parse the id of an event; '' is before all. Raises ``InvalidRequest``."""
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise InvalidRequest.of("invalid_value", "lastEventId", "Last-Event-ID must be the id of an event")
    return int(text)

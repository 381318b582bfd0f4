"""One background job from its claim to its end."""

import logging
import threading
from dataclasses import replace
from functools import partial

from store.sql.background_jobs import BackgroundJobStore, BackgroundStatus
from store.sql.leases import LeaseLostError
from store.sql.tables import BackgroundJob
from tasks.worker.background.context import HandlerContext
from tasks.worker.background.handlers import HANDLERS
from tasks.worker.lease_renewal import renewed

log = logging.getLogger(__name__)

#: A job whose runner was lost this often is given up.
MAX_ATTEMPTS = 5


class BackgroundRunner:
    """Runs jobs under ``name``, which no other process has."""

    def __init__(self, context: HandlerContext, name: str) -> None:
        self._context = context
        self._jobs = BackgroundJobStore(context.sessions)
        self._name = name

    def run(self, job_id: str) -> None:
        """Run a job if nobody else does."""
        lease = self._jobs.claim(job_id, self._name)
        job = self._jobs.load(job_id) if lease is not None else None
        if lease is None or job is None:
            return
        lost = threading.Event()
        with renewed(partial(self._jobs.renew, lease), lost):
            status, message = self._handle(job, lost)
        try:
            self._jobs.finish(lease, status, message)
        except LeaseLostError as error:
            log.warning("The background job was taken away: %s", error)

    def _handle(self, job: BackgroundJob, lost: threading.Event) -> tuple[BackgroundStatus, str]:
        """Do what the job is for; return its end. ``lost``: set when the job is somebody else's."""
        if job.attempts > MAX_ATTEMPTS:
            return BackgroundStatus.FAILED, f"Its runner was lost {MAX_ATTEMPTS} times"
        if job.kind not in HANDLERS:
            return BackgroundStatus.FAILED, f"No handler for the kind {job.kind!r}"
        try:
            return BackgroundStatus.COMPLETED, HANDLERS[job.kind](replace(self._context, lost=lost), job.payload)
        except Exception as error:
            log.exception("A background job failed", extra={"job_id": job.id})
            return BackgroundStatus.FAILED, f"{type(error).__name__}; the worker's log tells more"

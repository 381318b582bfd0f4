"""One background job from its claim to its end."""

import logging
import threading
from dataclasses import replace

from sqlalchemy.exc import SQLAlchemyError

from store.sql.background_jobs import BackgroundJobStore, BackgroundStatus
from store.sql.leases import LEASE_SECONDS, Lease, LeaseLostError
from tasks.worker.background.handlers import HANDLERS, HandlerContext

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
        ended, lost = threading.Event(), threading.Event()
        renewer = threading.Thread(target=self._renew, args=(lease, ended, lost), name="lease", daemon=True)
        renewer.start()
        try:
            if job.attempts > MAX_ATTEMPTS:
                status, message = BackgroundStatus.FAILED, f"Its runner was lost {MAX_ATTEMPTS} times"
            elif job.kind not in HANDLERS:
                status, message = BackgroundStatus.FAILED, f"No handler for the kind {job.kind!r}"
            else:
                message = HANDLERS[job.kind](replace(self._context, lost=lost), job.payload)
                status = BackgroundStatus.COMPLETED
        except Exception as error:
            log.exception("A background job failed", extra={"job_id": job_id})
            status, message = BackgroundStatus.FAILED, f"{type(error).__name__}; the worker's log tells more"
        finally:
            ended.set()
            renewer.join(timeout=5)
        try:
            self._jobs.finish(lease, status, message)
        except LeaseLostError as error:
            log.warning("The background job was taken away: %s", error)

    def _renew(self, lease: Lease, ended: threading.Event, lost: threading.Event) -> None:
        while not ended.wait(LEASE_SECONDS / 4):
            try:
                self._jobs.renew(lease)
            except LeaseLostError:
                lost.set()
                return
            except SQLAlchemyError as error:
                log.warning("The lease cannot be renewed now: %s", error.__class__.__name__)

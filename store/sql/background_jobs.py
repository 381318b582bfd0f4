"""Background jobs: work that no client waits for. The only writer of their state."""

import secrets
from datetime import timedelta
from enum import Enum
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from store.sql.leases import LEASE_SECONDS, Lease, LeaseLostError, is_claimable, update_one
from store.sql.tables import BackgroundJob, now
from store.tenant import DEFAULT_TENANT


class BackgroundStatus(Enum):
    """The states of a background job."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


class BackgroundJobStore:
    """All reads and writes of background jobs."""

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self._sessions = sessions

    def create(self, kind: str, payload: dict[str, Any], tenant: str = DEFAULT_TENANT) -> BackgroundJob:
        """Save a job that waits for a runner."""
        job = BackgroundJob(id=f"bg-{secrets.token_hex(8)}", kind=kind, payload=payload, tenant=tenant)
        with self._sessions.begin() as session:
            session.add(job)
        return job

    def create_periodic(self, kind: str, every: float) -> BackgroundJob | None:
        """Save a job of a kind that is due every ``every`` seconds; None where the last one is young, or still runs.

        The job is named after its turn, so that of several processes one makes it.
        """
        turn = int(now().timestamp() // every)
        job = BackgroundJob(id=f"{kind}-{turn}"[:40], kind=kind, payload={})
        with self._sessions() as session:
            if session.get(BackgroundJob, job.id) is not None:
                return None
            open_states = [BackgroundStatus.QUEUED.value, BackgroundStatus.RUNNING.value]
            running = select(BackgroundJob.id).where(BackgroundJob.kind == kind, BackgroundJob.status.in_(open_states))
            if session.scalar(running.limit(1)) is not None:
                return None
        try:
            with self._sessions.begin() as session:
                session.add(job)
        except IntegrityError:
            # Another process made it in the same moment.
            return None
        return job

    def load(self, job_id: str) -> BackgroundJob | None:
        with self._sessions() as session:
            return session.get(BackgroundJob, job_id)

    def claimable(self) -> list[str]:
        """Return the jobs that wait for a runner, or whose runner is gone; oldest first."""
        with self._sessions() as session:
            found = select(BackgroundJob.id).where(is_claimable(BackgroundJob, now()))
            return list(session.scalars(found.order_by(BackgroundJob.created_at)))

    def claim(self, job_id: str, runner: str) -> Lease | None:
        """Take a job that waits, or whose runner is gone. None when somebody else has it, or it has ended."""
        at = now()
        job = self.load(job_id)
        if job is None:
            return None
        conditions = [BackgroundJob.id == job_id, BackgroundJob.fence == job.fence, is_claimable(BackgroundJob, at)]
        with self._sessions.begin() as session:
            claimed = update_one(
                session,
                BackgroundJob,
                conditions,
                status=BackgroundStatus.RUNNING.value,
                runner=runner,
                fence=job.fence + 1,
                attempts=job.attempts + 1,
                lease_ends=at + timedelta(seconds=LEASE_SECONDS),
            )
        return Lease(job_id, runner, job.fence + 1) if claimed else None

    def renew(self, lease: Lease) -> None:
        """Raises ``LeaseLostError``."""
        self._write(lease, lease_ends=now() + timedelta(seconds=LEASE_SECONDS))

    def finish(self, lease: Lease, status: BackgroundStatus, message: str = "") -> None:
        """End the job. Raises ``LeaseLostError``."""
        self._write(lease, status=status.value, message=message[:1000], runner="", lease_ends=None, ended_at=now())

    def delete_ended(self, older_than: float) -> int:
        """Forget jobs that ended ``older_than`` seconds ago; return how many."""
        limit = now() - timedelta(seconds=older_than)
        with self._sessions.begin() as session:
            ended = list(session.scalars(select(BackgroundJob).where(BackgroundJob.ended_at < limit)))
            for job in ended:
                session.delete(job)
            return len(ended)

    def _write(self, lease: Lease, **values: Any) -> None:
        held = [
            BackgroundJob.id == lease.job_id,
            BackgroundJob.fence == lease.fence,
            BackgroundJob.status == BackgroundStatus.RUNNING.value,
        ]
        with self._sessions.begin() as session:
            if not update_one(session, BackgroundJob, held, **values):
                raise LeaseLostError(f"background job {lease.job_id} is not {lease.runner}'s any more")

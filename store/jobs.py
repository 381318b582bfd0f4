"""Training jobs: the only writer of their state.

Every transition is one conditional UPDATE, so that of any number of processes that try it
exactly one succeeds. A runner holds a job by a lease that it renews; each lease has a higher
*fence* number, and what a runner writes must carry the number in force: a runner that was
thought dead and comes back changes nothing.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.engine import CursorResult
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.sql.elements import ColumnElement

from store.models import TrainingEvent, TrainingJob, now

#: How long a runner may be silent. Seconds.
LEASE_SECONDS = 10.0


class JobStatus(Enum):
    """The states of the interface document."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


#: Nothing follows these.
ENDED = (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED)


class EventKind:
    """The ``kind`` of an event."""

    STATUS = "status"
    METRICS = "metrics"
    CHECKPOINT = "checkpoint"
    #: A trainer begins: ``step`` is the checkpoint that it goes on from, 0 for none.
    STARTED = "started"
    NOTE = "note"


class Fenced(Exception):
    """The lease is another runner's: this one must stop and leave everything as it is."""


@dataclass(frozen=True)
class Lease:
    """What a runner holds."""

    job_id: str
    runner: str
    fence: int


class JobStore:
    """All reads and writes of jobs."""

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self._sessions = sessions

    # What a client does.

    def create(
        self, job_id: str, owner: str, base_model: str, adapter_name: str, spec: dict[str, Any], options: dict[str, Any]
    ) -> TrainingJob:
        job = TrainingJob(
            id=job_id,
            owner=owner,
            status=JobStatus.QUEUED.value,
            base_model=base_model,
            adapter_name=adapter_name,
            spec=spec,
            options=options,
        )
        with self._sessions.begin() as session:
            session.add(job)
            session.flush()
            _note_status(session, job_id, JobStatus.QUEUED, "Training job has been queued")
        return job

    def load(self, job_id: str) -> TrainingJob | None:
        with self._sessions() as session:
            return session.get(TrainingJob, job_id)

    def page(
        self, owner: str | None, states: Sequence[JobStatus] | None, limit: int, offset: int
    ) -> tuple[list[TrainingJob], int]:
        """Return a page of jobs, newest first, and how many there are in all. ``owner`` None is everybody."""
        wanted: list[ColumnElement[bool]] = []
        if owner is not None:
            wanted.append(TrainingJob.owner == owner)
        if states is not None:
            wanted.append(TrainingJob.status.in_([state.value for state in states]))
        with self._sessions() as session:
            total = session.scalar(select(func.count()).select_from(TrainingJob).where(*wanted)) or 0
            order = (TrainingJob.created_at.desc(), TrainingJob.id)
            rows = session.scalars(select(TrainingJob).where(*wanted).order_by(*order).limit(limit).offset(offset))
            return list(rows), total

    def cancel(self, job_id: str) -> bool:
        """Cancel a job that no runner has, or tell its runner. False when it has ended."""
        told = "Training job has been cancelled"
        waiting = (JobStatus.QUEUED, JobStatus.PAUSED)
        if self._change(job_id, waiting, JobStatus.CANCELLED, told, ended_at=now()):
            return True
        if self._want(job_id, JobStatus.CANCELLED):
            # A runner that is gone needs not be told.
            lost = TrainingJob.lease_ends < now()
            self._change(job_id, (JobStatus.RUNNING,), JobStatus.CANCELLED, told, lost, ended_at=now(), wanted="")
            return True
        return False

    def pause(self, job_id: str) -> bool:
        """Pause a queued job, or tell the runner. False when it is in another state."""
        return self._change(job_id, (JobStatus.QUEUED,), JobStatus.PAUSED, "Paused before it began") or self._want(
            job_id, JobStatus.PAUSED
        )

    def resume(self, job_id: str) -> bool:
        """Queue a paused or failed job again; it goes on from its last checkpoint. False in any other state."""
        return self._change(
            job_id,
            (JobStatus.PAUSED, JobStatus.FAILED),
            JobStatus.QUEUED,
            "Training job has been queued again",
            wanted="",
            error_code="",
            restarts=0,
            ended_at=None,
        )

    # What a runner does.

    def claimable(self) -> list[str]:
        """Return the jobs that wait for a runner, or whose runner is gone; oldest first."""
        with self._sessions() as session:
            return list(
                session.scalars(select(TrainingJob.id).where(_claimable(now())).order_by(TrainingJob.created_at))
            )

    def claim(self, job_id: str, runner: str) -> Lease | None:
        """Take a job that waits, or whose runner is gone. None when somebody else has it, or it has ended."""
        at = now()
        job = self.load(job_id)
        if job is None:
            return None
        lost = job.status == JobStatus.RUNNING.value
        # A transaction writes first and reads later: SQLite lets no reader become a writer
        # while another one writes. What was read before is guarded by the fence.
        with self._sessions.begin() as session:
            changed = _update(
                session,
                [TrainingJob.id == job_id, TrainingJob.fence == job.fence, _claimable(at)],
                status=JobStatus.RUNNING.value,
                runner=runner,
                fence=job.fence + 1,
                lease_ends=at + timedelta(seconds=LEASE_SECONDS),
                restarts=job.restarts + int(lost),
                started_at=job.started_at or at,
                run_started_at=at,
                run_step=job.step,
                seconds_before=job.seconds_before + (_run_seconds(job, job.lease_ends) if lost else 0.0),
                message="",
            )
            if not changed:
                return None
            text = "Goes on after its runner was lost" if lost else "Running"
            _note_status(session, job_id, JobStatus.RUNNING, text)
            return Lease(job_id, runner, job.fence + 1)

    def renew(self, lease: Lease) -> str:
        """Renew the lease; return what the job shall become (``wanted``), or ''. Raises ``Fenced``."""
        with self._sessions.begin() as session:
            self._write(session, lease, lease_ends=now() + timedelta(seconds=LEASE_SECONDS))
            return session.scalar(select(TrainingJob.wanted).where(TrainingJob.id == lease.job_id)) or ""

    def began(self, lease: Lease, step: int, total_steps: int, samples: int) -> None:
        """The trainer takes its first step now: times are told from here. Raises ``Fenced``."""
        job = self.load(lease.job_id)
        at = now()
        spent = {"seconds_before": job.seconds_before + _run_seconds(job, at)} if job is not None else {}
        values: dict[str, Any] = {"step": step, "run_step": step, "total_steps": total_steps, **spent}
        values["run_started_at"] = at
        data = {"total_steps": total_steps, "samples": samples}
        with self._sessions.begin() as session:
            self._write(session, lease, **values)
            session.add(TrainingEvent(job_id=lease.job_id, kind=EventKind.STARTED, step=step, data=data))

    def progress(self, lease: Lease, **values: Any) -> None:
        """Write where the job is (``step``, ``total_steps``, ``epoch``, ``run_step``). Raises ``Fenced``."""
        with self._sessions.begin() as session:
            self._write(session, lease, **values)

    def event(self, lease: Lease, kind: str, at_step: int, data: dict[str, Any], **values: Any) -> None:
        """Add an event, and write ``values`` with it. Raises ``Fenced``."""
        with self._sessions.begin() as session:
            self._write(session, lease, **values)
            session.add(TrainingEvent(job_id=lease.job_id, kind=kind, step=at_step, data=data))

    def end(
        self,
        lease: Lease,
        status: JobStatus,
        message: str,
        along: Callable[[Session], dict[str, Any]] | None = None,
        **values: Any,
    ) -> None:
        """Give the job back in its new state. Raises ``Fenced``.

        ``along`` writes more in the same transaction and returns further values of the job. A
        job that was cancelled meanwhile does not become complete: that is ``Fenced`` too.
        """
        at = now()
        job = self.load(lease.job_id)
        if job is None:
            raise Fenced(f"job {lease.job_id} does not exist any more")
        if status in ENDED:
            values["ended_at"] = at
        with self._sessions.begin() as session:
            if status is JobStatus.COMPLETED:
                # Takes the row, so that no cancel can come in between.
                self._write(session, lease, wanted_not=JobStatus.CANCELLED, message=message[:1000])
            if along is not None:
                values |= along(session)
            self._write(
                session,
                lease,
                status=status.value,
                wanted="",
                runner="",
                lease_ends=None,
                run_started_at=None,
                message=message[:1000],
                seconds_before=job.seconds_before + _run_seconds(job, at),
                **values,
            )
            _note_status(session, lease.job_id, status, message[:1000])

    # What readers want.

    def events(self, job_id: str, after: int = 0, limit: int = 500, kind: str | None = None) -> list[TrainingEvent]:
        """Return events behind the id ``after``, oldest first."""
        wanted = [TrainingEvent.job_id == job_id, TrainingEvent.id > after]
        if kind is not None:
            wanted.append(TrainingEvent.kind == kind)
        with self._sessions() as session:
            return list(session.scalars(select(TrainingEvent).where(*wanted).order_by(TrainingEvent.id).limit(limit)))

    def _change(
        self,
        job_id: str,
        sources: tuple[JobStatus, ...],
        target: JobStatus,
        message: str,
        *more: ColumnElement[bool],
        **values: Any,
    ) -> bool:
        """Move a job that nobody runs. The fence goes up, so that a late runner changes nothing."""
        with self._sessions.begin() as session:
            states = [source.value for source in sources]
            changed = _update(
                session,
                [TrainingJob.id == job_id, TrainingJob.status.in_(states), *more],
                status=target.value,
                message=message,
                fence=TrainingJob.fence + 1,
                **values,
            )
            if changed:
                _note_status(session, job_id, target, message)
            return changed

    def _want(self, job_id: str, target: JobStatus) -> bool:
        with self._sessions.begin() as session:
            wanted = [TrainingJob.id == job_id, TrainingJob.status == JobStatus.RUNNING.value]
            if target is JobStatus.PAUSED:
                # Who cancelled it already wants no pause.
                wanted.append(TrainingJob.wanted != JobStatus.CANCELLED.value)
            return _update(session, wanted, wanted=target.value)

    @staticmethod
    def _write(session: Session, lease: Lease, wanted_not: JobStatus | None = None, **values: Any) -> None:
        held = [
            TrainingJob.id == lease.job_id,
            TrainingJob.fence == lease.fence,
            TrainingJob.status == JobStatus.RUNNING.value,
        ]
        if wanted_not is not None:
            held.append(TrainingJob.wanted != wanted_not.value)
        if not _update(session, held, **(values or {"fence": lease.fence})):
            raise Fenced(f"job {lease.job_id} is not {lease.runner}'s any more")


def new_job_id() -> str:
    """Return ``job-`` and 16 random hex digits."""
    return f"job-{secrets.token_hex(8)}"


def elapsed_seconds(job: TrainingJob) -> float:
    """Time that the job has been running, pauses not counted. Seconds."""
    return job.seconds_before + _run_seconds(job, now())


def _run_seconds(job: TrainingJob, until: datetime | None) -> float:
    if job.run_started_at is None or until is None:
        return 0.0
    return max(0.0, (until - job.run_started_at).total_seconds())


def _claimable(at: datetime) -> ColumnElement[bool]:
    lost = (TrainingJob.status == JobStatus.RUNNING.value) & (TrainingJob.lease_ends < at)
    return (TrainingJob.status == JobStatus.QUEUED.value) | lost


def _update(session: Session, where: list[ColumnElement[bool]], **values: Any) -> bool:
    result = session.execute(
        update(TrainingJob).where(*where).values(**values).execution_options(synchronize_session=False)
    )
    assert isinstance(result, CursorResult)
    return result.rowcount == 1


def _note_status(session: Session, job_id: str, status: JobStatus, message: str) -> None:
    data = {"status": status.value, "message": message}
    session.add(TrainingEvent(job_id=job_id, kind=EventKind.STATUS, data=data))

"""Training jobs: the only writer of their state.

Every transition is one conditional UPDATE; a runner holds a job by a lease with a fence
(``store.sql.leases``).
"""

import secrets
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.sql.elements import ColumnElement

from store.sql.leases import LEASE_SECONDS, Lease, LeaseLostError, is_claimable, update_one
from store.sql.tables import TrainingEvent, TrainingJob, now
from store.tenant import DEFAULT_TENANT


class JobStatus(Enum):
    """The states of the interface document."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


#: Nothing follows these.
TERMINAL = (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED)


class EventKind:
    """The ``kind`` of an event."""

    STATUS = "status"
    METRICS = "metrics"
    CHECKPOINT = "checkpoint"
    #: A trainer begins: ``step`` is the checkpoint that it goes on from, 0 for none.
    STARTED = "started"
    NOTE = "note"


#: Jobs that are read at once where they are looked through.
_PART = 200


class JobStore:
    """All reads and writes of jobs."""

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self._sessions = sessions

    # What a client does.

    def create(
        self,
        job_id: str,
        owner: str,
        base_model: str,
        adapter_name: str,
        spec: dict[str, Any],
        options: dict[str, Any],
        tenant: str = DEFAULT_TENANT,
        notes: Sequence[str] = (),
    ) -> TrainingJob:
        """Save a job that waits for a runner. ``notes`` are events before its first status."""
        job = TrainingJob(
            id=job_id,
            owner=owner,
            tenant=tenant,
            status=JobStatus.QUEUED.value,
            base_model=base_model,
            adapter_name=adapter_name,
            spec=spec,
            options=options,
        )
        with self._sessions.begin() as session:
            session.add(job)
            session.flush()
            for note in notes:
                # One at a time: their ids are their order.
                session.add(TrainingEvent(job_id=job_id, kind=EventKind.NOTE, data={"message": note}))
                session.flush()
            _add_status_event(session, job_id, JobStatus.QUEUED, "Training job has been queued")
        return job

    def load(self, job_id: str) -> TrainingJob | None:
        with self._sessions() as session:
            return session.get(TrainingJob, job_id)

    def page(
        self, tenant: str | None, states: Sequence[JobStatus] | None, limit: int, offset: int
    ) -> tuple[list[TrainingJob], int]:
        """Return a page of jobs, newest first, and how many there are in all. ``tenant`` None is everybody's."""
        conditions: list[ColumnElement[bool]] = []
        if tenant is not None:
            conditions.append(TrainingJob.tenant == tenant)
        if states is not None:
            conditions.append(TrainingJob.status.in_([state.value for state in states]))
        with self._sessions() as session:
            total = session.scalar(select(func.count()).select_from(TrainingJob).where(*conditions)) or 0
            order = (TrainingJob.created_at.desc(), TrainingJob.id)
            rows = session.scalars(select(TrainingJob).where(*conditions).order_by(*order).limit(limit).offset(offset))
            return list(rows), total

    def after(
        self, tenant: str | None, after: TrainingJob | None, limit: int, wanted: Callable[[TrainingJob], bool]
    ) -> tuple[list[TrainingJob], bool]:
        """Return up to ``limit`` jobs that are ``wanted``, newest first, behind one; and whether there are more."""
        found: list[TrainingJob] = []
        while True:
            conditions: list[ColumnElement[bool]] = [] if tenant is None else [TrainingJob.tenant == tenant]
            if after is not None:
                same = (TrainingJob.created_at == after.created_at) & (TrainingJob.id > after.id)
                conditions.append((TrainingJob.created_at < after.created_at) | same)
            order = (TrainingJob.created_at.desc(), TrainingJob.id)
            with self._sessions() as session:
                rows = list(session.scalars(select(TrainingJob).where(*conditions).order_by(*order).limit(_PART)))
            for job in rows:
                if wanted(job):
                    found.append(job)
                    if len(found) > limit:
                        return found[:limit], True
            if len(rows) < _PART:
                return found, False
            after = rows[-1]

    def cancel(self, job_id: str) -> bool:
        """Cancel a job that no runner has, or tell its runner. False when it has ended."""
        message = "Training job has been cancelled"
        idle = (JobStatus.QUEUED, JobStatus.PAUSED)
        if self._change(job_id, idle, JobStatus.CANCELLED, message, ended_at=now()):
            return True
        if self._request(job_id, JobStatus.CANCELLED):
            # A runner that is gone does not notice.
            lost = TrainingJob.lease_ends < now()
            self._change(
                job_id, (JobStatus.RUNNING,), JobStatus.CANCELLED, message, lost, ended_at=now(), requested_status=""
            )
            return True
        return False

    def pause(self, job_id: str) -> bool:
        """Pause a queued job, or tell the runner. False when it is in another state."""
        return self._change(job_id, (JobStatus.QUEUED,), JobStatus.PAUSED, "Paused before it began") or self._request(
            job_id, JobStatus.PAUSED
        )

    def resume(self, job_id: str) -> bool:
        """Queue a paused or failed job again; it goes on from its last checkpoint. False in any other state."""
        return self._change(
            job_id,
            (JobStatus.PAUSED, JobStatus.FAILED),
            JobStatus.QUEUED,
            "Training job has been queued again",
            requested_status="",
            error_code="",
            restarts=0,
            ended_at=None,
        )

    # What a runner does.

    def claimable(self) -> list[str]:
        """Return the jobs that wait for a runner, or whose runner is gone; oldest first."""
        with self._sessions() as session:
            return list(
                session.scalars(
                    select(TrainingJob.id).where(is_claimable(TrainingJob, now())).order_by(TrainingJob.created_at)
                )
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
            changed = update_one(
                session,
                TrainingJob,
                [TrainingJob.id == job_id, TrainingJob.fence == job.fence, is_claimable(TrainingJob, at)],
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
            _add_status_event(session, job_id, JobStatus.RUNNING, text)
            return Lease(job_id, runner, job.fence + 1)

    def renew(self, lease: Lease) -> str:
        """Renew the lease; return what a client wants the job to become, or ''. Raises ``LeaseLostError``."""
        with self._sessions.begin() as session:
            self._write_as_runner(session, lease, lease_ends=now() + timedelta(seconds=LEASE_SECONDS))
            return session.scalar(select(TrainingJob.requested_status).where(TrainingJob.id == lease.job_id)) or ""

    def mark_started(self, lease: Lease, step: int, total_steps: int, samples: int) -> None:
        """The trainer takes its first step now: times count from here. Raises ``LeaseLostError``."""
        job = self.load(lease.job_id)
        at = now()
        earlier_seconds = {"seconds_before": job.seconds_before + _run_seconds(job, at)} if job is not None else {}
        values: dict[str, Any] = {"step": step, "run_step": step, "total_steps": total_steps, **earlier_seconds}
        values["run_started_at"] = at
        data = {"total_steps": total_steps, "samples": samples}
        with self._sessions.begin() as session:
            self._write_as_runner(session, lease, **values)
            session.add(TrainingEvent(job_id=lease.job_id, kind=EventKind.STARTED, step=step, data=data))

    def progress(self, lease: Lease, **values: Any) -> None:
        """Write where the job is (``step``, ``total_steps``, ``epoch``, ``run_step``). Raises ``LeaseLostError``."""
        with self._sessions.begin() as session:
            self._write_as_runner(session, lease, **values)

    def add_event(
        self,
        lease: Lease,
        kind: str,
        at_step: int,
        data: dict[str, Any],
        in_transaction: Callable[[Session], dict[str, Any]] | None = None,
        **values: Any,
    ) -> None:
        """Add an event, and write ``values`` with it. Raises ``LeaseLostError``.

        ``in_transaction`` writes more in the same transaction and returns further data of the event.
        """
        with self._sessions.begin() as session:
            self._write_as_runner(session, lease, **values)
            if in_transaction is not None:
                data = {**data, **in_transaction(session)}
            session.add(TrainingEvent(job_id=lease.job_id, kind=kind, step=at_step, data=data))

    def finish(
        self,
        lease: Lease,
        status: JobStatus,
        message: str,
        in_transaction: Callable[[Session], dict[str, Any]] | None = None,
        **values: Any,
    ) -> None:
        """Give the job back in its new state. Raises ``LeaseLostError``.

        ``in_transaction`` writes more in the same transaction and returns further values of the job. A
        job that was cancelled meanwhile does not become complete: that is ``LeaseLostError`` too.
        """
        at = now()
        job = self.load(lease.job_id)
        if job is None:
            raise LeaseLostError(f"job {lease.job_id} does not exist any more")
        if status in TERMINAL:
            values["ended_at"] = at
        with self._sessions.begin() as session:
            if status is JobStatus.COMPLETED:
                # Takes the row, so that no cancel can come in between.
                self._write_as_runner(session, lease, unless_requested=JobStatus.CANCELLED, message=message[:1000])
            if in_transaction is not None:
                values |= in_transaction(session)
            self._write_as_runner(
                session,
                lease,
                status=status.value,
                requested_status="",
                runner="",
                lease_ends=None,
                run_started_at=None,
                message=message[:1000],
                seconds_before=job.seconds_before + _run_seconds(job, at),
                **values,
            )
            _add_status_event(session, lease.job_id, status, message[:1000])

    # What readers want.

    def events(self, job_id: str, after: int = 0, limit: int = 500, kind: str | None = None) -> list[TrainingEvent]:
        """Return events after the id ``after``, oldest first."""
        conditions = [TrainingEvent.job_id == job_id, TrainingEvent.id > after]
        if kind is not None:
            conditions.append(TrainingEvent.kind == kind)
        with self._sessions() as session:
            return list(
                session.scalars(select(TrainingEvent).where(*conditions).order_by(TrainingEvent.id).limit(limit))
            )

    def events_before(self, job_id: str, before: int | None, limit: int) -> list[TrainingEvent]:
        """Return events before the id ``before``, newest first."""
        conditions = [TrainingEvent.job_id == job_id]
        if before is not None:
            conditions.append(TrainingEvent.id < before)
        with self._sessions() as session:
            order = TrainingEvent.id.desc()
            return list(session.scalars(select(TrainingEvent).where(*conditions).order_by(order).limit(limit)))

    def metrics(self, job_id: str) -> list[tuple[int, dict[str, Any]]]:
        """Return every logged step with its values. A step that was trained again shows as it was trained last."""
        steps: dict[int, dict[str, Any]] = {}
        after = 0
        while found := self.events(job_id, after, kind=EventKind.METRICS):
            for event in found:
                steps.setdefault(event.step, {}).update(event.data)
            after = found[-1].id
        return sorted(steps.items())

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
            changed = update_one(
                session,
                TrainingJob,
                [TrainingJob.id == job_id, TrainingJob.status.in_(states), *more],
                status=target.value,
                message=message,
                fence=TrainingJob.fence + 1,
                **values,
            )
            if changed:
                _add_status_event(session, job_id, target, message)
            return changed

    def _request(self, job_id: str, target: JobStatus) -> bool:
        with self._sessions.begin() as session:
            conditions = [TrainingJob.id == job_id, TrainingJob.status == JobStatus.RUNNING.value]
            if target is JobStatus.PAUSED:
                # Who cancelled it already wants no pause.
                conditions.append(TrainingJob.requested_status != JobStatus.CANCELLED.value)
            return update_one(session, TrainingJob, conditions, requested_status=target.value)

    @staticmethod
    def _write_as_runner(
        session: Session, lease: Lease, unless_requested: JobStatus | None = None, **values: Any
    ) -> None:
        held = [
            TrainingJob.id == lease.job_id,
            TrainingJob.fence == lease.fence,
            TrainingJob.status == JobStatus.RUNNING.value,
        ]
        if unless_requested is not None:
            held.append(TrainingJob.requested_status != unless_requested.value)
        if not update_one(session, TrainingJob, held, **(values or {"fence": lease.fence})):
            raise LeaseLostError(f"job {lease.job_id} is not {lease.runner}'s any more")


def new_job_id(prefix: str = "job-") -> str:
    """Return ``prefix`` and 16 random hex digits."""
    return f"{prefix}{secrets.token_hex(8)}"


def elapsed_seconds(job: TrainingJob) -> float:
    """Time that the job has been running, pauses not counted. Seconds."""
    return job.seconds_before + _run_seconds(job, now())


def _run_seconds(job: TrainingJob, until: datetime | None) -> float:
    if job.run_started_at is None or until is None:
        return 0.0
    return max(0.0, (until - job.run_started_at).total_seconds())


def _add_status_event(session: Session, job_id: str, status: JobStatus, message: str) -> None:
    data = {"status": status.value, "message": message}
    session.add(TrainingEvent(job_id=job_id, kind=EventKind.STATUS, data=data))

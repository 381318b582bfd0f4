"""How many jobs, batches and adapters there are, and how far running trainings are: for monitoring."""

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from store.sql.batches import BatchStatus
from store.sql.file_tables import Batch
from store.sql.jobs import JobStatus
from store.sql.tables import Adapter, TrainingJob

#: Running trainings that are told of, one set of numbers each.
_MOST_RUNNING = 100


@dataclass(frozen=True)
class RunningJob:
    """How far a training is."""

    id: str
    step: int
    total_steps: int
    loss: float | None


@dataclass(frozen=True)
class Counts:
    """What there is at one moment."""

    #: Status -> how many; every status is there.
    trainings: dict[str, int]
    batches: dict[str, int]
    #: Base model -> how many.
    adapters: dict[str, int]
    running: list[RunningJob]


class JobCounts:
    """Counts afresh at each call. Raises ``SQLAlchemyError``."""

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self._sessions = sessions

    def counts(self) -> Counts:
        with self._sessions() as session:

            def by(column: object, *conditions: object) -> dict[str, int]:
                statement = select(column, func.count()).where(*conditions).group_by(column)  # type: ignore[call-overload]
                return {str(value): int(count) for value, count in session.execute(statement)}

            running = session.scalars(
                select(TrainingJob).where(TrainingJob.status == "running").order_by(TrainingJob.id).limit(_MOST_RUNNING)
            )
            return Counts(
                {**{status.value: 0 for status in JobStatus}, **by(TrainingJob.status)},
                {**{status.value: 0 for status in BatchStatus}, **by(Batch.status)},
                by(Adapter.base_model, Adapter.deleted_at.is_(None)),
                [RunningJob(job.id, job.step, job.total_steps, job.loss) for job in running],
            )

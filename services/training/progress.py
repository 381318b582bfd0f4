"""How far a job is, as clients see it."""

from store.sql.jobs import JobStatus, elapsed_seconds
from store.sql.tables import TrainingJob


def shown_status(job: TrainingJob) -> str:
    """The state; a job whose cancel its runner has not carried out yet is cancelled: nothing else can follow."""
    cancelled = JobStatus.CANCELLED.value
    return cancelled if job.requested_status == cancelled else job.status


def current_epoch(job: TrainingJob) -> int:
    """The epoch that is being trained, from 1; 0 before the first step."""
    total = int(job.spec["params"]["epochs"]) or 1
    return min(total, int(job.epoch) + 1) if job.step else 0


def remaining_seconds(job: TrainingJob) -> int | None:
    """Seconds, by the pace of the present run; None where that is not known."""
    done = job.step - job.run_step
    if job.status != JobStatus.RUNNING.value or done < 1:
        return None
    run = elapsed_seconds(job) - job.seconds_before
    return round(run / done * (job.total_steps - job.step))


def percent(job: TrainingJob) -> float:
    """Steps done of all, 0 to 100."""
    return 100 * job.step / job.total_steps if job.total_steps else 0.0

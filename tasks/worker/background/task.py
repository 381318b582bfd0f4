"""The ``cpu-work`` task: thin, ids as arguments. The work is in ``tasks.worker.background.handlers``."""

from typing import Any

from celery import Task, shared_task

import logs
from tasks.broker import names
from tasks.worker.celery_internals import PreAckedRequest


class BackgroundTask(Task):
    """A task that a thread of the pool runs."""

    Request = PreAckedRequest


@shared_task(name=names.TASK_BACKGROUND, base=BackgroundTask, bind=True, ignore_result=True)
def run(self: Task, job_id: str) -> None:
    """Run one background job."""
    runner: Any = self.app.background
    with logs.bind(job_id=job_id):
        runner.run(job_id)

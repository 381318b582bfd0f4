"""The ``gpu-train`` task: thin, ids as arguments. The work is in ``tasks.worker.training.job_runner``."""

from typing import Any

from celery import Task, shared_task

import logs
from store.redis import control
from store.redis.control import Command
from tasks.broker import names
from tasks.worker.celery_internals import PreAckedRequest


class TrainingTask(Task):
    """A task that a thread of the pool runs."""

    Request = PreAckedRequest


@shared_task(name=names.TASK_TRAIN, base=TrainingTask, bind=True, ignore_result=True)
def train(self: Task, job_id: str) -> None:
    """Run one training job, and tell the workers of the adapter that came of it."""
    context: Any = self.app.training
    with logs.bind(job_id=job_id):
        adapter = context.runner.run(job_id)
        if adapter is not None:
            control.send(context.redis, Command.LOAD_ADAPTER, adapter.base_model, path=adapter.path)

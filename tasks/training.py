"""The ``gpu-train`` task: thin, ids as arguments. The work is in ``tasks.job_runner``."""

from typing import Any

from celery import Task

import logs
from store import control
from store.control import Command
from tasks import app, names
from tasks.strategy import Taken


class TrainingTask(Task):
    """A task that a thread of the pool runs."""

    Request = Taken


@app.task(name=names.TASK_TRAIN, base=TrainingTask, bind=True, ignore_result=True)
def train(self: Task, job_id: str) -> None:
    """Run one training job, and tell the workers of the adapter that came of it."""
    trainers: Any = self.app.trainers
    with logs.bind(job_id=job_id):
        adapter = trainers.runner.run(job_id)
        if adapter is not None:
            control.send(trainers.redis, Command.LOAD_ADAPTER, adapter.base_model, path=adapter.path)

"""What a ``cpu-work`` worker does beside its tasks: periodic jobs are saved when due, forgotten ones sent again."""

import secrets
from typing import Any

from celery import bootsteps, signals

from settings import Settings
from store.redis.client import connect
from store.sql import db
from store.sql.background_jobs import BackgroundJobStore
from store.sql.batches import BatchStore
from store.sql.usage import UsageStore
from tasks.broker import submit
from tasks.broker.names import BATCHES, QUEUE_BACKGROUND
from tasks.worker.background.context import HandlerContext
from tasks.worker.background.handlers import PERIODIC
from tasks.worker.background.runner import BackgroundRunner
from tasks.worker.background.usage_booker import UsageBooker
from tasks.worker.celery_internals import disable_acknowledgement
from tasks.worker.installation import require_installation
from tasks.worker.job_watcher import JobWatcher


class BackgroundStep(bootsteps.StartStopStep):
    """Makes the runner and the watcher."""

    requires = {"celery.worker.components:Timer"}

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self.enabled = QUEUE_BACKGROUND in worker.app.amqp.queues.consume_from
        if self.enabled:
            disable_acknowledgement(worker.app)

    def start(self, worker: Any) -> None:
        settings = Settings.from_env_or_exit()
        sessions = db.sessions(db.connect(settings.database_url))
        jobs = BackgroundJobStore(sessions)

        batches = BatchStore(sessions)

        def save_due() -> None:
            if batches.any_open():
                jobs.create_periodic(BATCHES, 1.0)
            for kind, every in PERIODIC.items():
                jobs.create_periodic(kind, every)

        name = f"{worker.hostname}:{secrets.token_hex(4)}"
        context = HandlerContext(settings, sessions)
        self._stopping = context.stopping
        signals.worker_shutting_down.connect(self._on_shutting_down)
        worker.app.background = BackgroundRunner(context, name)
        client = connect(settings.redis_url)
        require_installation(client, sessions)
        self._watcher = JobWatcher(client, QUEUE_BACKGROUND, jobs.claimable, submit.enqueue_background, save_due)
        self._watcher.start()
        self._booker = UsageBooker(client, UsageStore(sessions), name)
        self._booker.start()

    def _on_shutting_down(self, **_: Any) -> None:
        """The worker was told to stop: what takes long is left to another one."""
        self._stopping.set()

    def stop(self, worker: Any) -> None:
        self._watcher.stop()
        self._booker.stop()

    terminate = stop
